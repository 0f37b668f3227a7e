"""Opens sessions in processes of their own: from a stock of ready ones, forked from a zygote, or cold."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentao_gov.budget import scope_limits
from agentao_gov.budget.types import Ledger, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Clock, Deadline
from agentao_gov.errors import GovError, InternalError
from agentao_gov.governor.turn import Observers, TurnObserver
from agentao_gov.governor.types import Conversation, SessionKey, SessionSpec, TurnRequest
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.process.scratch import ScratchDirs
from agentao_gov.process.stderr import StderrReader
from agentao_gov.process.tags import TAG_VARIABLE, child_env, session_tag
from agentao_gov.worker.host import HostParts, SubprocessHost
from agentao_gov.worker.spawn import ColdSpawner, SessionProcess, ZygoteSpawner

if TYPE_CHECKING:
    from agentao_gov.config import ResolvedDeployment

_log = logging.getLogger(__name__)
_START_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class SubprocessSettings:
    """How session processes are started and limited."""

    limits: OsLimits = field(default_factory=OsLimits)
    #: Processes kept ready beyond those in use; each costs some MiB until a session takes it.
    ready: int = 2
    #: Whether each session gets a pid namespace of its own where the system allows it.
    pid_namespace: bool = False
    #: tenant -> Python of its own, for other dependencies; such sessions start cold.
    pythons: Mapping[str, str] = field(default_factory=dict)
    #: False: every session starts cold, from nothing.
    zygote: bool = True

    @classmethod
    def of(cls, deployment: ResolvedDeployment) -> SubprocessSettings:
        """What the deployment file says."""
        pool = deployment.deployment.pool
        limits = OsLimits(
            memory_bytes=pool.session_memory_bytes,
            processes=pool.session_processes,
            cpu_s=pool.session_cpu_s,
            files=pool.session_files,
            file_bytes=pool.session_file_bytes,
        )
        tenants = deployment.deployment.tenants.items()
        return cls(
            limits=limits,
            ready=pool.ready_workers,
            pid_namespace=pool.session_pid_namespace,
            pythons={name: tenant.python for name, tenant in tenants if tenant.python is not None},
        )


class SubprocessFactory:
    """Satisfies `HostFactory`. Thread-safe."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        deployment: ResolvedDeployment | None = None,
        settings: SubprocessSettings | None = None,
        homes: Path | None = None,
        zygote: ZygoteSpawner | None = None,
        clock: Clock = SYSTEM_CLOCK,
        observers: Sequence[TurnObserver] = (),
    ) -> None:
        """`homes`: where the processes' private HOME directories are made; None: in the deployment's state directory.

        `zygote`: one that is there already; it is closed with the factory.
        """
        if settings is None:
            settings = SubprocessSettings.of(deployment) if deployment is not None else SubprocessSettings()
        self._settings = settings
        self._deployment = deployment
        #: A directory of our own where there is no deployment; removed with the factory.
        self._own_homes: tempfile.TemporaryDirectory[str] | None = None
        if homes is None and deployment is not None:
            homes = deployment.state_dir / "homes"
        elif homes is None:
            self._own_homes = tempfile.TemporaryDirectory(prefix="agentao-gov-homes-")
            homes = Path(self._own_homes.name)
        self._homes = ScratchDirs(homes)
        self._observers = Observers(observers)
        if zygote is None:
            # The zygote serves all sessions, so its own tag names none; what its forks start carries their session's.
            owner_tag = session_tag("", "zygote")
            zygote = ZygoteSpawner(child_env(owner_tag, "session"))
        self._zygote = zygote
        self._errors = StderrReader()
        self._parts = HostParts(
            ledger=ledger,
            clock=clock,
            observers=self._observers,
            scopes=self._scopes,
            limits=settings.limits,
            errors=self._errors,
            spawn=self._spawn,
            home=self._home,
        )
        self._lock = threading.Lock()
        # All below under `_lock`.
        self._ready: deque[SessionProcess] = deque()
        self._filling = False
        #: Whether no session was opened yet: a program that opens one only is faster without a zygote.
        self._lone = True
        self._closed = False

    def observe(self, observer: TurnObserver) -> None:
        """Adds an observer of turns."""
        self._observers.add(observer)

    def warm_up(self) -> None:
        """Starts the zygote and the stock of ready processes in the background. Until then sessions start cold."""
        if self._settings.zygote:
            with self._lock:
                self._lone = False
            self._refill()

    def prepare(self, deadline: Deadline) -> None:
        """Waits until the zygote is ready. Raises InternalError."""
        self._zygote.start(deadline)

    def open(self, spec: SessionSpec, conversation: Conversation | None, deadline: Deadline) -> SubprocessHost:
        """See HostFactory. Milliseconds from the stock, tens of them by fork, a second cold."""
        if TAG_VARIABLE not in spec.child_env:
            spec = replace(
                spec, child_env={**spec.child_env, **child_env(session_tag(spec.key.tenant, spec.key.session))}
            )
        host = SubprocessHost(spec, self._parts, conversation)
        host.start(deadline)
        return host

    def shutdown(self, deadline: Deadline) -> None:
        """Ends the zygote and the processes that no session took."""
        with self._lock:
            self._closed = True
            spare = list(self._ready)
            self._ready.clear()
        for process in spare:
            process.kill()
        self._zygote.close()
        for process in spare:
            process.wait_gone(max(0.1, min(deadline.remaining_s(), 2.0)))
            _discard(process)
        self._homes.close()
        self._errors.close()
        if self._own_homes is not None:
            self._own_homes.cleanup()

    def ready_count(self) -> int:
        """Processes in stock."""
        with self._lock:
            return len(self._ready)

    def process_ids(self) -> tuple[int, ...]:
        """Roots of what no session owns: the zygote and the stock."""
        zygote = self._zygote.process_id()
        with self._lock:
            stock = tuple(process.root.pid for process in self._ready)
        return stock if zygote is None else (zygote, *stock)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, spec: SessionSpec, deadline: Deadline) -> SessionProcess:
        python = self._settings.pythons.get(spec.key.tenant)
        if python is not None or not self._settings.zygote:
            return self._spawn_cold(spec, python)
        with self._lock:
            process = self._ready.popleft() if self._ready else None
            lone, self._lone = self._lone, False
        if not lone:
            self._refill()
        if process is not None and process.alive:
            return process
        if process is not None:
            _discard(process)
        if self._zygote.ready:
            try:
                return self._fork(deadline)
            except InternalError:
                _log.exception("The zygote could not fork; the session starts cold")
        return self._spawn_cold(spec, None)

    def _fork(self, deadline: Deadline) -> SessionProcess:
        settings = self._settings
        return self._zygote.spawn(settings.limits, deadline, pid_namespace=settings.pid_namespace)

    def _spawn_cold(self, spec: SessionSpec, python: str | None) -> SessionProcess:
        """A second, instead of waiting for a zygote that takes several to get ready."""
        start = ColdSpawner(*(() if python is None else (python,)), pid_namespace=self._settings.pid_namespace)
        env = {**spec.child_env, **child_env(spec.child_env[TAG_VARIABLE], "session")}
        return start.spawn(env, self._settings.limits)

    def _refill(self) -> None:
        with self._lock:
            enough = len(self._ready) >= self._settings.ready and self._zygote.ready
            if self._filling or self._closed or enough:
                return
            self._filling = True
        threading.Thread(target=self._fill, name="gov-ready", daemon=True).start()

    def _fill(self) -> None:
        """Brings the stock up to its size; one thread at a time, so that it never forks more than are missing."""
        while True:
            with self._lock:
                if self._closed or (len(self._ready) >= self._settings.ready and self._zygote.ready):
                    self._filling = False
                    return
                missing = len(self._ready) < self._settings.ready
            try:
                self._zygote.start(Deadline.after(_START_S_MAX))
                if not missing:
                    continue
                process = self._fork(Deadline.after(_START_S_MAX))
            except GovError as error:
                with self._lock:
                    self._filling = False
                    closed = self._closed
                if not closed:
                    _log.error("No session process could be kept ready: %s", error)
                return
            with self._lock:
                keep = not self._closed
                if keep:
                    self._ready.append(process)
            if not keep:
                process.kill()
                process.wait_gone(1.0)
                _discard(process)

    def _home(self, key: SessionKey) -> Path:
        """The session's private HOME; it lives as long as the session is resident."""
        return self._homes.path(hashlib.sha256(f"{key.tenant}\0{key.session}".encode()).hexdigest()[:16])

    def _scopes(self, spec: SessionSpec, request: TurnRequest) -> tuple[ScopeLimit, ...]:
        tenant, session = spec.key.tenant, spec.key.session
        tokens = spec.profile.profile.limits.turn_tokens
        return scope_limits(self._deployment, tenant, request.user, session, request.turn_id, tokens)


def _discard(process: SessionProcess) -> None:
    """Closes what connects to a process that no session uses."""
    process.let_go()
    process.wire.close()
    process.read_exit(0)
