"""One order on its way through the pool: who waits for it, what it holds, whether it was called off."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from agentao_gov.governor.types import EventSink, SessionKey
from agentao_gov.pool.core import SessionHealth

if TYPE_CHECKING:
    from agentao_gov.pool.archive import SessionDir
    from agentao_gov.pool.host import SessionHost
    from agentao_gov.pool.residents import Resident
    from agentao_gov.pool.types import TurnOrder

_STACK_DEPTH = 8


def _frames() -> tuple[tuple[CodeType, int], ...]:
    """Where the caller stands: code and line, 2 µs; the text is made only if the lease leaks."""
    frames: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(3)
    while frame is not None and len(frames) < _STACK_DEPTH:
        frames.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(frames)


@dataclass(slots=True, eq=False)
class Ticket:
    """Its fields belong to the engine's lock until the grant and to the turn's thread after it, but for the flags."""

    order: TurnOrder
    future: Future[Any]
    #: What happens on the grant; called outside every lock, must not block.
    granted: Callable[[Ticket], None]
    on_event: EventSink
    submitted_at: float
    waiter_id: int = 0
    lease_id: int | None = None
    resident: Resident | None = None
    #: The session's lock between processes; kept through a reopening, so that nobody overtakes.
    held: SessionDir | None = None
    waited_s: float = 0.0
    thread_id: int | None = None
    #: The host has been asked to run the turn: from here on a cancel goes to the host.
    started: bool = False
    #: Set once, never cleared; read by the turn's thread and the ticker's.
    cancel_reason: str | None = None
    #: The lease was taken away because the turn never came back. Under the engine's lock.
    abandoned: bool = False
    #: Where the turn was asked for, the innermost first.
    borrower: tuple[tuple[CodeType, int], ...] = field(default_factory=_frames)

    @property
    def key(self) -> SessionKey:
        """Whose turn it is."""
        return self.order.key

    @property
    def given_up(self) -> bool:
        """Whether nobody wants this turn any more."""
        return self.cancel_reason is not None or self.future.cancelled()

    def drop_hold(self) -> None:
        """Gives the session's lock back, if it is held."""
        held, self.held = self.held, None
        if held is not None:
            held.release()


def stack_of_caller(frames: tuple[tuple[CodeType, int], ...]) -> str:
    """The frames as text, the outermost first."""
    lines = []
    for code, line in reversed(frames):
        lines.append(f'  File "{code.co_filename}", line {line}, in {code.co_name}\n')
        if source := linecache.getline(code.co_filename, line).strip():
            lines.append(f"    {source}\n")
    return "".join(lines)


class HeldLease:
    """The right to run turns on one session's host oneself, until `release`; also a context manager.

    The session is not archived after it, and its lock between worker processes is not taken: for a single process.
    """

    __slots__ = ("_release", "host", "id", "key", "waited_s")

    def __init__(
        self,
        id: int,
        key: SessionKey,
        host: SessionHost,
        waited_s: float,
        release: Callable[[SessionKey, int, SessionHealth], None],
    ) -> None:
        self.id = id
        self.key = key
        self.host = host
        self.waited_s = waited_s
        self._release = release

    def release(self, *, broken: bool = False) -> None:
        """Gives the session back. Raises StaleLeaseError when it was given back before, or taken away."""
        self._release(self.key, self.id, SessionHealth.BROKEN if broken else SessionHealth.OK)

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release(broken=error is not None)
