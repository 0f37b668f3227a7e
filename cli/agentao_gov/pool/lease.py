"""A session lent to a caller who runs turns on it himself, instead of handing the pool a message."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from agentao_gov.pool.core import Verdict

if TYPE_CHECKING:
    from agentao_gov.governor.types import SessionKey
    from agentao_gov.pool.host import SessionHost

__all__ = ["HeldLease"]


class HeldLease:
    """The right to use one session's host until `release`; also a context manager.

    The session is not archived after it, and its lock between worker processes is not taken: for a single process.
    """

    __slots__ = ("_release", "host", "id", "key", "waited_s")

    def __init__(
        self,
        id: int,
        key: SessionKey,
        host: SessionHost,
        waited_s: float,
        release: Callable[[SessionKey, int, Verdict], None],
    ) -> None:
        self.id = id
        self.key = key
        self.host = host
        self.waited_s = waited_s
        self._release = release

    def release(self, *, broken: bool = False) -> None:
        """Gives the session back. Raises StaleLeaseError when it was given back before, or taken away."""
        self._release(self.key, self.id, Verdict.BROKEN if broken else Verdict.OK)

    def __enter__(self) -> HeldLease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release(broken=error is not None)
