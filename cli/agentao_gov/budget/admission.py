"""Does a call fit? The one place that decides it, as arithmetic on integers: no clock, no store, no threads."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

__all__ = ["Admission", "Answer", "Level", "admit", "extendable"]


class Answer(StrEnum):
    """What the budgets say to a call."""

    GRANTED = "granted"
    #: Does not fit now, but would if others gave back what they hold.
    WAIT = "wait"
    #: Spent for this window; nothing that is still held could make room.
    EXHAUSTED = "exhausted"
    #: Larger than the whole budget.
    IMPOSSIBLE = "impossible"


class Level(NamedTuple):
    """One scope in one window. `limit` includes grants; None is unlimited."""

    limit: int | None
    used: int
    reserved: int

    @property
    def free(self) -> int | None:
        """What can be reserved now; below zero after an under-estimate, None where nothing limits."""
        return None if self.limit is None else self.limit - self.used - self.reserved


class Admission(NamedTuple):
    """The answer. `blocking` are positions of the scopes that said no, the first of them the one to name."""

    answer: Answer
    output_tokens: int = 0
    blocking: tuple[int, ...] = ()


def admit(levels: Sequence[Level], prompt: int, output_min: int, output_max: int) -> Admission:
    """Admits a call only if used + reserved + prompt + output <= limit in all of its scopes.

    The output granted is `output_max`, or what remains if that is less, but never below `output_min`:
    so a budget can be used to its last tokens. A scope in which the call does not fit blocks it; it is worth
    waiting only if in every blocking scope the tokens now reserved by others could make room.
    """
    least = prompt + output_min
    grant = output_max
    blocking: list[int] = []
    impossible: list[int] = []
    exhausted: list[int] = []
    for position, (limit, used, reserved) in enumerate(levels):
        if limit is None:
            continue
        free = limit - used - reserved
        grant = min(grant, free - prompt)
        if least <= free:
            continue
        blocking.append(position)
        if least > limit:
            impossible.append(position)
        elif least > limit - used:
            exhausted.append(position)
    if impossible:
        return Admission(Answer.IMPOSSIBLE, blocking=tuple(impossible))
    if exhausted:
        return Admission(Answer.EXHAUSTED, blocking=tuple(exhausted))
    if blocking:
        return Admission(Answer.WAIT, blocking=tuple(blocking))
    return Admission(Answer.GRANTED, output_tokens=grant)


def extendable(levels: Sequence[Level], wanted: int) -> int:
    """How much of `wanted` a running stream can have on top of what it holds. It never waits: it holds tokens."""
    free = [level.free for level in levels]
    return max(0, min([wanted, *(tokens for tokens in free if tokens is not None)]))
