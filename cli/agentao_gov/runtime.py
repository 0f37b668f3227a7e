"""Puts the floors together: ledger, governor, hosts of the three modes, archive and pool, from one deployment.

`run`, `serve`, `checklist` and programs that embed the library all get their pool here, so that none of them has a
pool with fewer limits than the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentao_gov.budget import open_ledger
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.governor.governor import Governor
from agentao_gov.pool import AgentPool, SessionArchive
from agentao_gov.pool.subprocess_factory import SubprocessFactory

if TYPE_CHECKING:
    from agentao_gov.budget import TokenLedger
    from agentao_gov.config import ResolvedDeployment
    from agentao_gov.governor.observe import TurnObserver
    from agentao_gov.governor.requests import Conversation, SessionSpec
    from agentao_gov.governor.session import GovernedSession
    from agentao_gov.governor.transport import AskUser, ConfirmTool

__all__ = ["Runtime", "build_runtime", "open_runtime"]


class _ThisProcess:
    """Opens sessions in this process, for the modes `fresh` and `in-process`. Satisfies `HostFactory`."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> GovernedSession:
        return self._governor.open(spec, conversation, deadline)

    def shutdown(self, deadline: Deadline) -> None:
        del deadline
        self._governor.close()


@dataclass(slots=True)
class Runtime:
    """A pool and what it stands on. `close` ends all of it, in order."""

    deployment: ResolvedDeployment
    ledger: TokenLedger
    governor: Governor
    subprocesses: SubprocessFactory
    archive: SessionArchive
    pool: AgentPool
    _close_s: float
    _closed: bool = False

    def observe(self, observer: TurnObserver) -> None:
        """Lets somebody watch the turns of every mode."""
        self.governor.observe(observer)
        self.subprocesses.observe(observer)

    def close(self) -> None:
        """Ends sessions, shared processes, the HTTP client and the ledger. May be called again; blocks."""
        if self._closed:
            return
        self._closed = True
        try:
            self.pool.close(Deadline.after(self._close_s))
        finally:
            self.ledger.close()


def build_runtime(
    deployment: ResolvedDeployment,
    *,
    clock: Clock = SYSTEM_CLOCK,
    confirm: ConfirmTool | None = None,
    ask: AskUser | None = None,
    close_s: float | None = None,
) -> Runtime:
    """Opens the ledger and builds an empty pool; the caller closes it.

    `confirm` and `ask` reach a person at a terminal. `close_s` bounds `close`; the default is the ladder's
    `shutdown.close` and `shutdown.kill`. Raises ConfigError and StoreError.
    """
    ledger = open_ledger(deployment, clock)
    try:
        governor = Governor(ledger=ledger, deployment=deployment, clock=clock, confirm=confirm, ask=ask)
        subprocesses = SubprocessFactory(ledger=ledger, deployment=deployment, clock=clock)
        archive = SessionArchive(deployment.state_dir / "sessions", clock=clock)
        here = _ThisProcess(governor)
        pool = AgentPool(
            deployment, {"fresh": here, "in-process": here, "subprocess": subprocesses}, archive, clock=clock
        )
    except BaseException:
        ledger.close()
        raise
    shutdown = deployment.deployment.shutdown
    limit_s = shutdown.close_s + shutdown.kill_s if close_s is None else close_s
    return Runtime(deployment, ledger, governor, subprocesses, archive, pool, limit_s)


@contextlib.contextmanager
def open_runtime(
    deployment: ResolvedDeployment,
    *,
    clock: Clock = SYSTEM_CLOCK,
    confirm: ConfirmTool | None = None,
    ask: AskUser | None = None,
    close_s: float | None = None,
) -> Iterator[Runtime]:
    """As `build_runtime`, closed at the end of the block."""
    runtime = build_runtime(deployment, clock=clock, confirm=confirm, ask=ask, close_s=close_s)
    try:
        yield runtime
    finally:
        runtime.close()
