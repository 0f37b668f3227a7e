"""The pool's clock hand: one thread that brings time to the core, and looks after what hangs."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING

from agentao_gov.errors import StoreError
from agentao_gov.governor.types import SessionKey
from agentao_gov.pool.events import LeaseLeaked
from agentao_gov.pool.types import SessionState

if TYPE_CHECKING:
    from agentao_gov.pool.engine import Engine
    from agentao_gov.pool.events import Effect, PoolEvent
    from agentao_gov.pool.turns import Turns

_log = logging.getLogger(__name__)

#: Between looks when nothing is due: stuck sessions and hanging closes are found within this time.
_LOOK_S = 1.0
#: Between repeated cancels: a cancel that falls between the grant and the host's first step finds no turn.
_CANCEL_AGAIN_S = 0.05
#: Past a close's deadline by this much its processes are killed and another thread takes over the queue behind it.
_CLOSE_LATE_S = 2.0
#: Closers at the most, hung ones included.
_CLOSERS_MAX = 64
_SWEEP_S = 600.0


class Ticker:
    """Ticks the core when something is due, and at least every second."""

    def __init__(self, engine: Engine, turns: Turns, retain_s: float, closers: int) -> None:
        self._engine = engine
        self._turns = turns
        self._retain_s = retain_s
        self._closers = closers
        self._due_at = float("inf")
        self._wake = threading.Event()
        self._stopped = False
        # The first sweep is at the start: a service that restarts every day must delete as one that never does.
        self._swept_at = float("-inf")
        engine.subscribe(self._on_event)
        threading.Thread(target=self._run, name="pool-ticker", daemon=True).start()

    def expect(self, at: float) -> None:
        """Something is due at this time; wakes the thread if it would sleep over it."""
        if at < self._due_at:
            self._due_at = at
            self._wake.set()

    def widen(self) -> None:
        """As many closers as there may be: the way down closes everything at once."""
        self._closers = _CLOSERS_MAX
        self._engine.closers.allow(_CLOSERS_MAX)

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped = True
        self._wake.set()

    def look(self) -> None:
        """One round, now."""
        engine = self._engine
        engine.decide(engine.core.tick)
        self._cancel_again()
        self._free_unstuck()
        self._kill_late_closes()
        engine.rests.look(engine.clock.monotonic())
        if engine.clock.monotonic() - self._swept_at >= _SWEEP_S:
            self._swept_at = engine.clock.monotonic()
            engine.closers.submit(self._sweep)

    def _run(self) -> None:
        while not self._stopped:
            try:
                self.look()
                self._wake.wait(self._pause_s())
            except Exception:
                # Without this thread no deadline of the pool holds: it must survive anything.
                _log.exception("The pool's ticker failed")
                self._wake.wait(_LOOK_S)

    def _pause_s(self) -> float:
        engine = self._engine
        self._wake.clear()
        with engine.lock:
            self._due_at = engine.core.next_wake()
            cancelling = any(ticket.cancel_reason for ticket in engine.running.values())
        pause_s = min(self._due_at - engine.clock.monotonic(), _CANCEL_AGAIN_S if cancelling else _LOOK_S)
        return max(0.001, pause_s)

    def _cancel_again(self) -> None:
        with self._engine.lock:
            called_off = [ticket for ticket in self._engine.running.values() if ticket.cancel_reason]
        for ticket in called_off:
            if ticket.started and ticket.resident is not None and ticket.cancel_reason is not None:
                ticket.resident.host.cancel(ticket.cancel_reason)

    def _free_unstuck(self) -> None:
        """A thread that was left behind may end after all: its session closes, and its slot is free again."""
        engine = self._engine
        with engine.lock:
            if not engine.core.table.count[SessionState.STUCK]:
                return
            suspects = [
                (key, engine.residents[key])
                for key, entry in engine.core.table.entries.items()
                if entry.state is SessionState.STUCK and key in engine.residents and key not in engine.abandoned
            ]
        for key, resident in suspects:
            if not resident.host.stuck:
                engine.decide(functools.partial(self._unstuck, key))

    def _unstuck(self, key: SessionKey, now: float) -> list[Effect]:
        entry = self._engine.core.table.entries.get(key)
        if entry is None or entry.state is not SessionState.STUCK:
            return []
        return self._engine.core.unstuck(now, key)

    def _kill_late_closes(self) -> None:
        engine = self._engine
        now = engine.clock.monotonic()
        with engine.lock:
            late = [closing for closing in engine.closing.values() if closing.deadline.at + _CLOSE_LATE_S < now]
        engine.closers.allow(min(_CLOSERS_MAX, self._closers + len(late)))
        for closing in late:
            if not closing.resident.killed.is_set():
                closing.resident.killed.set()
                _log.warning("The close of session %s hangs: killing it", closing.resident.spec.key)
                # On a thread of its own: whatever the close waits for, the kill may wait for too.
                threading.Thread(target=closing.resident.host.kill, name="pool-kill", daemon=True).start()

    def _sweep(self) -> None:
        engine = self._engine

        def in_memory(key: SessionKey) -> bool:
            with engine.lock:
                return key in engine.core.table.entries

        try:
            engine.lifecycle.archive.sweep(self._retain_s, in_memory)
        except StoreError:
            _log.exception("The sweep of old sessions failed")

    def _on_event(self, event: PoolEvent) -> None:
        """A turn that a host still holds long after its deadline is given up."""
        if isinstance(event, LeaseLeaked) and not event.returned:
            with self._engine.lock:
                ticket = self._engine.running.get(event.key)
            if ticket is not None and ticket.started and ticket.lease_id == event.lease_id:
                self._turns.abandon(ticket)
