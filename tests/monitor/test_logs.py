"""Log lines: one JSON object each, ids and figures, no content; of refusals no more than enough, whoever asks."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from agentao_gov.errors import ForbiddenOriginError, QueueFullError
from agentao_gov.governor.report import Reason
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.logs import LOGGER, RefusalLog, configure_logging, log_event, log_pool_event
from agentao_gov.pool.events import SessionOpenFailed, TurnEnded
from tests.service.samples import report
from tests.support.clock import FakeClock


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    names = ("agentao_gov", "uvicorn", "uvicorn.access")
    before = {
        name: (list(log.handlers), log.propagate, log.level, log.disabled)
        for name in names
        if (log := logging.getLogger(name))
    }
    yield
    for name, (handlers, propagate, level, disabled) in before.items():
        log = logging.getLogger(name)
        log.handlers, log.propagate, log.disabled = handlers, propagate, disabled
        log.setLevel(level)


def test_off_a_terminal_every_line_is_one_json_object() -> None:
    """A log collector must be able to read each line by itself."""
    out = io.StringIO()
    configure_logging(out)

    log_event("first", session='a"b\nc', n=3)
    LOGGER.warning("second")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]

    assert [line["event"] for line in lines] == ["first", "second"]
    assert lines[0]["session"] == 'a"b\nc'
    assert lines[1]["level"] == "warning"


def test_a_turn_is_told_by_ids_and_figures_without_its_text() -> None:
    """Prompts and answers are the tenants', not the operator's."""
    out = io.StringIO()
    configure_logging(out)

    log_pool_event(TurnEnded(report(answer="a very secret answer")))
    line = json.loads(out.getvalue())

    assert (line["tenant"], line["session"], line["turn_id"], line["outcome"]) == ("acme", "s1", "t1", "answered")
    assert "secret" not in out.getvalue()


def test_what_a_tenant_is_not_told_of_a_warning_is_in_the_log() -> None:
    """Why an MCP server did not start stands nowhere else."""
    out = io.StringIO()
    configure_logging(out)

    log_pool_event(TurnEnded(report().with_warning(Reason("It is not available.", "It is not available: ENOENT\nx"))))

    assert json.loads(out.getvalue())["warnings"] == ["It is not available: ENOENT\nx"]
    assert out.getvalue().count("\n") == 1


def test_on_a_terminal_a_line_stays_one_line() -> None:
    """Ids come from clients: they must not forge lines or move the cursor."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    configure_logging(out)

    log_pool_event(SessionOpenFailed(SessionKey("acme", "x\n\x1b[2Jforged"), "internal_error", "boom\nboom"))

    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()


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
