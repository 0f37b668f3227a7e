"""What a session process logs reaches the service's log, and can neither flood it nor pass for the service."""

from __future__ import annotations

import logging

import pytest

from agentao_gov.process.stderr import RelayedLog
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def relayed(clock: FakeClock) -> RelayedLog:
    return RelayedLog("the process of session acme/s1", clock)


def test_warnings_of_a_session_process_reach_the_owner_s_log(
    relayed: RelayedLog, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that had to be abandoned is worth a line where somebody reads it; its level is never above an error."""
    relayed.handle({"level": logging.INFO, "text": "abandoned"})
    relayed.handle({"level": 10**9, "text": "worse"})

    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]
    assert "In the process of session acme/s1: abandoned" in caplog.text


def test_no_line_of_a_session_process_passes_for_the_service_s(
    relayed: RelayedLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines after the first are set off, and there are not too many of them."""
    relayed.handle({"level": logging.ERROR, "text": "Traceback:\r\n2026-11-22 ERROR forged" + "x" * 100_000})

    (record,) = caplog.records
    assert "\n    2026-11-22 ERROR forged" in record.getMessage()
    assert "\r" not in record.getMessage()
    assert len(record.getMessage()) < 9_000


def test_what_servers_write_to_their_standard_error_is_logged_with_the_session_s_name(
    relayed: RelayedLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it looks like a record of the service; empty lines are none."""
    relayed.error_output("no database\n2026-11-22 ERROR forged\n")
    relayed.error_output("\n")

    (record,) = caplog.records
    assert record.getMessage().endswith("acme/s1: no database\n    2026-11-22 ERROR forged")


def test_a_flood_is_cut_and_counted(relayed: RelayedLog, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Sixty records a minute pass; the next minute says how many did not."""
    for number in range(1_000):
        relayed.handle({"level": logging.WARNING, "text": f"number {number}"})
    clock.advance(60)
    relayed.handle({"level": logging.WARNING, "text": "next minute"})

    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 62
    assert said[60].endswith("940 records more were not logged")
    assert said[61].endswith("next minute")


CONTROLS = "\x1b[2J\x0b\x0c\r\x85\x9b\u2028\u2029"


@pytest.mark.parametrize("way", ["record", "error output"])
def test_nothing_of_a_session_process_steers_a_terminal(
    relayed: RelayedLog, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Nor begins a line where a reader knows more line ends than one; each such character leaves a mark."""
    if way == "record":
        relayed.handle({"level": logging.ERROR, "text": f"a\t{CONTROLS}ERROR forged"})
    else:
        relayed.error_output(f"a\t{CONTROLS}ERROR forged\n")

    (record,) = caplog.records
    mark = "\N{REPLACEMENT CHARACTER}"
    assert record.getMessage().endswith(f": a\t{mark}[2J{mark * 7}ERROR forged")


def test_where_nobody_logs_error_output_is_as_harmless_and_as_bounded(
    relayed: RelayedLog, clock: FakeClock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command at a terminal shows it as it is but for controls, and says what it did not show."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    relayed.error_output(f"{CONTROLS}one\n")
    for number in range(2, 100):
        relayed.error_output(f"number {number}\n")
    clock.advance(60)
    relayed.error_output("next minute\r\n")

    lines = capsys.readouterr().err.split("\n")
    mark = "\N{REPLACEMENT CHARACTER}"
    assert lines[0] == f"{mark}[2J{mark * 7}one"
    assert lines[60:] == [
        "In the process of session acme/s1: 39 pieces more were not shown",
        "next minute",
        "",
    ]
