"""Log lines: one JSON object each, ids and figures, no content."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from agentao_gov.governor.report import Reason
from agentao_gov.governor.types import SessionKey
from agentao_gov.monitor.logs import LOGGER, configure_logging, log_event, log_pool_event
from agentao_gov.pool.events import SessionOpenFailed, TurnEnded
from tests.service.samples import report


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
