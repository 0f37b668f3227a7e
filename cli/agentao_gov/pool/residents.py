"""Brings sessions into memory and out of it: archive, working directory and host put together. Blocks; no decisions."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentao_gov.clock import Clock, Deadline
from agentao_gov.errors import ConfigError, StoreError
from agentao_gov.governor.report import Mode, TurnReport
from agentao_gov.governor.types import SessionKey, SessionSpec
from agentao_gov.pool.archive import SessionArchive, SessionDir, SessionHead, as_store_error
from agentao_gov.pool.host import HostFactory, SessionHost
from agentao_gov.pool.types import CloseReason, SessionUsage, TurnOrder
from agentao_gov.process.scratch import ScratchDirs

_log = logging.getLogger(__name__)

#: How long an eviction waits for a lock that another process has: that process has the newer copy anyway.
_SAVE_LOCK_S = 1.0
#: Closes of sessions whose copy in memory is not worth keeping.
_WITHOUT_SAVING = frozenset({CloseReason.DELETED, CloseReason.STALE, CloseReason.BROKEN, CloseReason.UNSTUCK})


@dataclass(slots=True)
class Resident:
    """A session in memory. Belongs to whoever opens, runs or closes it: the core lets only one at a time."""

    host: SessionHost
    spec: SessionSpec
    #: As it is on disk; `version` 0: nothing saved yet.
    head: SessionHead
    rehydrated: bool
    #: Its turns are written to the archive.
    archived: bool
    #: Its working directory goes when it closes.
    temporary: bool
    #: The last turn could not be written: it must not leave memory before it is.
    dirty: bool = False
    #: It stands in the queue of those that will rest. Under the engine's lock.
    awaits_rest: bool = False
    #: Its last rest gave no memory up: it is not worth another before its time. Under the engine's lock.
    light: bool = False
    #: Its host was told to end by force.
    killed: threading.Event = field(default_factory=threading.Event)

    def serves(self, order: TurnOrder) -> bool:
        """Whether this agent is the one the order asks for; a session may be continued under another profile."""
        spec = self.spec
        return (
            (spec.profile is order.profile or spec.profile == order.profile)
            and spec.model == order.model
            and spec.mode == order.mode
            and (order.workdir is None or order.workdir == spec.workdir)
        )


class Lifecycle:
    """Opens, saves and closes sessions. Thread-safe in different sessions."""

    def __init__(
        self,
        archive: SessionArchive,
        factories: Mapping[Mode, HostFactory],
        *,
        hibernate: bool,
        workdirs: Path,
        child_env: Callable[[SessionKey], Mapping[str, str]],
        clock: Clock,
    ) -> None:
        self.archive = archive
        self.factories = factories
        self._hibernate = hibernate
        self._workdirs = ScratchDirs(workdirs)
        self._child_env = child_env
        self._clock = clock

    def archives(self, order: TurnOrder) -> bool:
        """Whether the order's session is kept on disk. A fresh session has nowhere else to go on from."""
        return order.keep and (self._hibernate or order.mode == "fresh")

    def open(self, order: TurnOrder, deadline: Deadline) -> Resident:
        """Builds the session's agent, from the archive if it is there. Raises GovError."""
        factory = self.factories.get(order.mode)
        if factory is None:
            raise ConfigError(
                f"This pool cannot host sessions in mode {order.mode!r}.", hint=f"It can: {', '.join(self.factories)}."
            )
        archived = self.archives(order)
        loaded = self.archive.load(order.key) if archived else None
        head, conversation = loaded if loaded is not None else (self._new_head(order), order.conversation)
        temporary = order.workdir is None and (order.mode == "fresh" or not archived)
        spec = SessionSpec(
            key=order.key,
            user=order.user,
            profile=order.profile,
            model=order.model,
            workdir=self._workdir(order, temporary=temporary),
            mode=order.mode,
            child_env=self._child_env(order.key),
        )
        try:
            host = factory.open(spec, conversation, deadline)
        except BaseException:
            if temporary:
                shutil.rmtree(spec.workdir, ignore_errors=True)
            raise
        return Resident(host, spec, head, loaded is not None, archived, temporary)

    def save(self, resident: Resident, held: SessionDir) -> None:
        """Writes the session under its lock. Raises StoreError, and marks the session as not saved."""
        resident.dirty = True
        resident.head = self.archive.save(held, resident.head, resident.host.snapshot())
        resident.dirty = False

    def book(self, resident: Resident, report: TurnReport) -> None:
        """Adds a turn to the session's head."""
        used, usage = resident.head.usage, report.usage
        resident.head = replace(
            resident.head,
            profile=report.profile,
            model=report.model,
            mode=report.mode,
            last_turn_at=self._clock.time(),
            usage=SessionUsage(
                turns=used.turns + 1,
                prompt_tokens=used.prompt_tokens + usage.prompt_tokens,
                completion_tokens=used.completion_tokens + usage.completion_tokens,
                total_tokens=used.total_tokens + usage.total_tokens,
                llm_calls=used.llm_calls + usage.llm_calls,
            ),
        )

    def can_leave(self, resident: Resident, reason: CloseReason) -> bool:
        """Whether closing loses nothing. A turn that could not be written is tried again here."""
        if not resident.dirty or not resident.archived or reason in _WITHOUT_SAVING:
            return True
        try:
            held = self.archive.hold(resident.spec.key, Deadline.after(_SAVE_LOCK_S, self._clock))
            if held is None:
                return True
            try:
                if self.archive.version(held) == resident.head.version:
                    self.save(resident, held)
            finally:
                held.release()
        except StoreError as error:
            _log.error("Session %s stays in memory: %s", resident.spec.key, error)
            return False
        return True

    def close(self, resident: Resident, reason: CloseReason, deadline: Deadline) -> str | None:
        """Ends the session's agent and removes what must go with it. Returns what went wrong, for the log."""
        wrong = None
        try:
            resident.host.close(deadline)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
            _log.exception("Closing session %s failed; its processes are killed", resident.spec.key)
            try:
                resident.host.kill()
            except Exception:
                _log.exception("Killing session %s failed", resident.spec.key)
        if resident.temporary:
            shutil.rmtree(resident.spec.workdir, ignore_errors=True)
        return self.remove(resident.spec.key) or wrong if reason is CloseReason.DELETED else wrong

    def remove(self, key: SessionKey) -> str | None:
        """Removes the session from disk. Returns what went wrong, for the log."""
        try:
            self.archive.delete(key)
        except StoreError as error:
            _log.exception("Session %s could not be removed", key)
            return str(error)
        return None

    def shutdown(self, deadline: Deadline) -> None:
        """Ends what the sessions of each mode share, and removes the temporary working directories."""
        for factory in {id(factory): factory for factory in self.factories.values()}.values():
            factory.shutdown(deadline)
        self._workdirs.close()

    def _workdir(self, order: TurnOrder, *, temporary: bool) -> Path:
        if order.workdir is not None:
            return order.workdir
        if not temporary:
            return self.archive.workdir(order.key)
        with as_store_error(f"A working directory for session {order.key} cannot be made"):
            return self._workdirs.make()

    def _new_head(self, order: TurnOrder) -> SessionHead:
        now = self._clock.time()
        profile = order.profile.profile.name
        return SessionHead(order.key, 0, order.user, profile, order.mode, order.model.name, now, now, SessionUsage())
