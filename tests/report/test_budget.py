"""Balances on a terminal: one line each that fits, and no flood of sessions."""

from __future__ import annotations

import io
from typing import Literal

import pytest

from agentao_gov.budget import Balance, Scope
from agentao_gov.report.budget import print_balances
from agentao_gov.report.terminal import console


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _balance(kind: Literal["tenant", "session"], key: str, used: int, window: str = "2026-11-22") -> Balance:
    return Balance(Scope(kind, key), window, "UTC", 300_000, used, 0)


def _lines(out: io.StringIO, balances: list[Balance]) -> list[str]:
    print_balances(console(out), balances, (0.8, 0.95))
    return out.getvalue().splitlines()


def test_a_terminal_is_shown_the_sessions_that_used_most() -> None:
    """A day of single questions is thousands of sessions; the tenants must not scroll away above them."""
    balances = [_balance("tenant", "acme", 9_000), *(_balance("session", f"acme/once-{n:012d}", n) for n in range(50))]

    lines = _lines(_Terminal(), balances)

    assert lines[0] == "2026-11-22 UTC"
    assert lines[1].startswith("tenant:acme ")
    assert [line.split()[0] for line in lines[2:-1]] == [f"session:acme/once-{n:012d}" for n in range(30, 50)]
    assert lines[-1] == "… 30 sessions more, each with less; --json has them all"
    assert max(map(len, lines)) <= 80


def test_a_pipe_gets_every_session() -> None:
    """Whoever reads by machine counts for themselves."""
    lines = _lines(io.StringIO(), [_balance("session", f"acme/{n}", n) for n in range(50)])

    assert len(lines) == 51


def test_days_are_told_apart_where_there_are_several() -> None:
    """One heading for one day, else the day behind each figure."""
    lines = _lines(_Terminal(), [_balance("tenant", "a", 1), _balance("tenant", "b", 2, window="2026-11-23")])

    assert [line.rsplit(" · ", 1)[1] for line in lines] == ["2026-11-22 UTC", "2026-11-23 UTC"]
