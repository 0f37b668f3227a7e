"""Refusals in the log: enough to see what goes on, and no more, whoever asks."""

from __future__ import annotations

from typing import Any

import pytest

from agentao_gov.errors import ForbiddenOriginError, QueueFullError
from agentao_gov.monitor.logs import RefusalLog
from tests.support.clock import FakeClock


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any, Any]]:
    """Each record's event, code and count."""
    fields = [(record.message, record.gov_fields) for record in caplog.records]  # type: ignore[attr-defined]
    return [(message, given["code"], given.get("count")) for message, given in fields]


def test_a_flood_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Sixty of a kind pass in a minute; the next one after it says how many did not. Other kinds go on."""
    clock = FakeClock()
    log = RefusalLog(clock)

    for _ in range(1_000):
        log.tell(QueueFullError("512 requests are open already."))
    log.tell(ForbiddenOriginError("The service takes nothing from there."))
    during = said(caplog)
    caplog.clear()
    clock.advance(60)
    log.tell(QueueFullError("512 requests are open already."))
    log.tell(ForbiddenOriginError("The service takes nothing from there."))

    assert during == [("request refused", "queue_full", None)] * 60 + [("request refused", "forbidden_origin", None)]
    assert said(caplog) == [
        ("refusals not logged", "queue_full", 940),
        ("request refused", "queue_full", None),
        ("request refused", "forbidden_origin", None),
    ]
