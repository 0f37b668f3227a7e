"""Puts the floors together: ledger, governor, hosts of the three modes, archive and pool, from one deployment.

`run`, `serve`, `checklist` and programs that embed the library all get their pool here, so that none of them has a
pool with fewer limits than the others.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentao_gov.budget import open_ledger
from agentao_gov.clock import SYSTEM_CLOCK, Clock
from agentao_gov.governor.governor import Governor
from agentao_gov.pool import AgentPool, GovernorHosts, SessionArchive
from agentao_gov.process.sweep import sweep
from agentao_gov.worker.factory import SubprocessFactory

if TYPE_CHECKING:
    from pathlib import Path

    from agentao_gov.budget import TokenLedger
    from agentao_gov.config import ResolvedDeployment
    from agentao_gov.governor.transport import AskUser, ConfirmTool
    from agentao_gov.governor.turn import TurnObserver

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Runtime:
    """A pool and what it stands on. `close` ends all of it, in order."""

    deployment: ResolvedDeployment
    ledger: TokenLedger
    governor: Governor
    subprocesses: SubprocessFactory
    archive: SessionArchive
    pool: AgentPool
    _closed: bool = False

    def observe(self, observer: TurnObserver) -> None:
        """Tells `observer` of the turns of every mode, from now on."""
        self.governor.observe(observer)
        self.subprocesses.observe(observer)

    def close(self) -> None:
        """Ends sessions, shared processes, the HTTP client and the ledger. May be called again.

        Blocks, at most for the ladder's rungs below draining; turns that still run are cancelled.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.pool.close()
        finally:
            self.ledger.close()


def build_runtime(
    deployment: ResolvedDeployment,
    *,
    clock: Clock = SYSTEM_CLOCK,
    confirm: ConfirmTool | None = None,
    ask: AskUser | None = None,
) -> Runtime:
    """Opens the ledger and builds an empty pool; the caller closes it.

    `deployment`: the limits, budgets and state directory to run under. `clock`: time for deadlines and budget days.
    `confirm` and `ask` reach a person at a terminal; without them a question is answered no. Raises ConfigError, and
    StoreError where ledger or archive cannot be used. Blocks for file access.
    """
    _make_private(deployment.state_dir)
    ledger = open_ledger(deployment, clock)
    try:
        governor = Governor(ledger=ledger, deployment=deployment, clock=clock, confirm=confirm, ask=ask)
        subprocesses = SubprocessFactory(ledger=ledger, deployment=deployment, clock=clock)
        archive = SessionArchive(deployment.state_dir / "sessions", clock=clock)
        here = GovernorHosts(governor)
        # What a service that was killed left behind; counted in orphans_killed_total.
        sweep()
        pool = AgentPool(
            deployment, {"fresh": here, "in-process": here, "subprocess": subprocesses}, archive, clock=clock
        )
    except BaseException:
        ledger.close()
        raise
    return Runtime(deployment, ledger, governor, subprocesses, archive, pool)


def _make_private(state_dir: Path) -> None:
    """Closes a state directory that others may write into, and says so: they could put files in a session's place."""
    try:
        found = state_dir.stat()
    except OSError:  # whoever opens the first store in it makes it, or says why not
        return
    if not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    mode = stat.S_IMODE(found.st_mode)
    # One with the sticky bit is everybody's on purpose, like /tmp.
    shared = bool(mode & stat.S_ISVTX)
    with contextlib.suppress(OSError):
        if not shared:
            state_dir.chmod(0o700)
            _log.warning("Others could write into the state directory %s (mode %04o): it is 0700 now", state_dir, mode)
            return
    _log.warning(
        "Others can write into the state directory %s (mode %04o), and so change what sessions say: give the service a"
        " directory of its own with `[state] dir` or AGENTAO_GOV_STATE", state_dir, mode,
    )  # fmt: skip


@contextlib.contextmanager
def open_runtime(
    deployment: ResolvedDeployment,
    *,
    clock: Clock = SYSTEM_CLOCK,
    confirm: ConfirmTool | None = None,
    ask: AskUser | None = None,
) -> Iterator[Runtime]:
    """As `build_runtime`, with the same `deployment`, `clock`, `confirm` and `ask`; closed at the end of the block.

    Raises what `build_runtime` raises.
    """
    runtime = build_runtime(deployment, clock=clock, confirm=confirm, ask=ask)
    try:
        yield runtime
    finally:
        runtime.close()
