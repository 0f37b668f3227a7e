"""Sessions in processes as the tests open them, and what their tools are told to do."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agentao_gov.budget import TokenLedger
from agentao_gov.budget.types import Balance, Scope, ScopeLimit
from agentao_gov.clock import Deadline
from agentao_gov.config import ModelChoice
from agentao_gov.config.profile import ApiFormat
from agentao_gov.governor import Conversation, SessionKey, SessionSpec, TurnEvent, TurnReport, TurnRequest
from agentao_gov.process import SessionTree, procfs
from agentao_gov.process.tags import TAG_VARIABLE
from agentao_gov.simulator import Simulator
from agentao_gov.worker.factory import SubprocessFactory
from agentao_gov.worker.host import SubprocessHost
from tests.governor.harness import resolved, say
from tests.process import zoo

__all__ = [
    "PATIENT",
    "SHELL",
    "SHORT",
    "Subprocesses",
    "alive",
    "background",
    "python",
    "shell",
    "worker_pid",
]

SHELL = {"permission_mode": "full-access", "allow": ["run_shell_command"], "sandbox": "off"}
SHORT = {"turn_timeout": 1, "cancel_grace": 1, "tool_timeout": 1}
PATIENT = {"turn_timeout": 15, "tool_timeout": 12}

_numbers = itertools.count(1)


class Subprocesses:
    """Opens sessions in processes on the simulated model; closes what it opened."""

    def __init__(self, simulator: Simulator, root: Path, factory: SubprocessFactory, ledger: TokenLedger) -> None:
        self.simulator = simulator
        self.factory = factory
        self.ledger = ledger
        self.root = root
        #: The wire on which sessions speak to the model.
        self.api_format: ApiFormat = "openai-completions"
        self.opened: list[SubprocessHost] = []
        self.events: list[TurnEvent] = []

    def spec(self, **settings: Any) -> SessionSpec:
        """A session nobody else has, under a profile with these tables."""
        session = f"s{next(_numbers)}"
        choice = ModelChoice(
            kind="simulated",
            name="simulated",
            base_url=self.simulator.base_url,
            api_key=SecretStr("sk-simulated-0123456789"),
            context_window=None,
            source="test",
            api_format=self.api_format,
        )
        # A tenant of its own, so that balances are this test's alone.
        key = SessionKey(f"tenant-{session}", session)
        return SessionSpec(key, "ann", resolved(**settings), choice, self.root / session, "subprocess")

    def open(self, conversation: Conversation | None = None, **settings: Any) -> SubprocessHost:
        host = self.factory.open(self.spec(**settings), conversation, Deadline.after(30))
        self.opened.append(host)
        return host

    def ask(self, host: SubprocessHost, message: str, *, deadline_s: float | None = None) -> TurnReport:
        deadline = Deadline.after(deadline_s) if deadline_s is not None else None
        return host.turn(TurnRequest(f"turn-{next(_numbers)}", message, "ann", deadline), self.events.append)

    def balance(self, report: TurnReport) -> Balance:
        (balance,) = self.ledger.balances([ScopeLimit(Scope("tenant", report.tenant), None)])
        return balance

    def close(self) -> None:
        for host in self.opened:
            host.close(Deadline.after(5))
        assert zoo.until(lambda: not any(alive(host) for host in self.opened))


def alive(host: SubprocessHost) -> Sequence[int]:
    """The processes of a session's tree, and those that left it but carry its tag."""
    tree = SessionTree(host.spec.child_env[TAG_VARIABLE])
    return sorted({*host.process_ids(), *(ref.pid for ref in tree.members())})


def shell(command: str) -> str:
    return say(text="after", tool={"name": "run_shell_command", "args": {"command": command}})


def python(program: str) -> str:
    """A shell command that runs a Python program."""
    return f"{sys.executable} -I -S -c '{program}'"


def worker_pid(host: Any) -> int:
    """The process that runs the agent: the child of the session's warden."""
    (warden,) = host.process_ids()
    return next(s.ref.pid for s in procfs.stats() if s.ppid == warden)


def background(subprocesses: Subprocesses, host: Any, message: str) -> tuple[threading.Thread, list[TurnReport]]:
    """Runs a turn on a thread of its own."""
    reports: list[TurnReport] = []
    thread = threading.Thread(target=lambda: reports.append(subprocesses.ask(host, message)), daemon=True)
    thread.start()
    return thread, reports
