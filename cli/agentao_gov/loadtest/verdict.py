"""How a load test ends: one conclusion, one exit code, and the reasons in the order of their weight.

Never green on nothing: a pass needs a balanced book, at least one answered turn, every threshold met with samples
enough, and a generator that kept its own schedule. Pure.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agentao_gov.loadtest.compare import Comparison
from agentao_gov.loadtest.record import TurnTally
from agentao_gov.loadtest.thresholds import ThresholdResult

Conclusion = Literal["pass", "fail", "inconclusive", "interrupted"]
_PASS, _FAILED, _INCONCLUSIVE = 0, 1, 11


@dataclass(frozen=True, slots=True)
class RunEnding:
    """All that decides how a run is judged."""

    tally: TurnTally
    #: What does not add up in the books.
    imbalances: Sequence[str] = ()
    #: Upper bounds that ended the load early and were not the user's own.
    bounds: Sequence[str] = ()
    #: Why the run was refused before it began, with its exit code.
    refused: tuple[str, int] | None = None
    thresholds: Sequence[ThresholdResult] = ()
    comparisons: Sequence[Comparison] = ()
    #: Why the generator was the bottleneck; None: it was not.
    generator_bound: str | None = None
    #: Turns that it could not send: they count as failed, and the service has no part in it.
    unsent: int = 0
    #: Why the generator's process is gone; None: it ended in order.
    generator_died: str | None = None
    #: Why the service is gone; None: it outlived the test.
    service_died: str | None = None
    #: The signal that ended the run early.
    signal: int | None = None
    #: Who ended it, where it was no signal.
    stopped_by: str = ""
    checklist_failed: bool = False
    #: For `--shape capacity`: why there is no capacity; None: found, or not searched.
    capacity_failed: str | None = None
    capacity_unclear: str | None = None


@dataclass(frozen=True, slots=True)
class RunVerdict:
    """The end. `reasons` is empty for a pass."""

    conclusion: Conclusion
    exit_code: int
    reasons: tuple[str, ...] = ()

    @property
    def word(self) -> Literal["pass", "fail"]:
        """What the report's `verdict` says: whatever is not a pass must not look like one."""
        return "pass" if self.conclusion == "pass" else "fail"


def judge(ending: RunEnding) -> RunVerdict:
    """The conclusion. What speaks against trusting the numbers comes before what the numbers say."""
    if ending.refused is not None:
        return RunVerdict("fail", ending.refused[1], (ending.refused[0],))
    if ending.signal is not None:
        by = ending.stopped_by or signal.Signals(ending.signal).name
        return RunVerdict("interrupted", 128 + ending.signal, (f"ended by {by}; the report is partial",))
    failed = _failures(ending)
    doubts = _doubts(ending)
    # A generator that is gone or could not send, and books that do not balance, spoil every figure; one that was late
    # spoils latencies.
    generator_failed = ending.generator_died is not None or ending.unsent > 0
    spoilt = generator_failed or bool(ending.imbalances) or not ending.tally.balanced
    late = ending.generator_bound is not None and all(reason.latency for reason in failed)
    if failed and not spoilt and not late:
        return RunVerdict("fail", _FAILED, tuple(reason.text for reason in failed) + tuple(doubts))
    if doubts:
        return RunVerdict("inconclusive", _INCONCLUSIVE, tuple(doubts) + tuple(reason.text for reason in failed))
    return RunVerdict("pass", _PASS)


@dataclass(frozen=True, slots=True)
class _Reason:
    text: str
    #: A latency measured by a generator in doubt proves nothing; a count of errors does.
    latency: bool = False


def _failures(ending: RunEnding) -> list[_Reason]:
    reasons = []
    if ending.service_died is not None:
        reasons.append(_Reason(f"the service died: {ending.service_died}"))
    if ending.checklist_failed:
        reasons.append(_Reason("the checklist failed"))
    if ending.tally.started > 0 and not ending.tally.by_status.get("answered") and ending.generator_died is None:
        reasons.append(_Reason(f"none of {ending.tally.started} turns was answered"))
    if ending.capacity_failed is not None:
        reasons.append(_Reason(f"no capacity: {ending.capacity_failed}"))
    reasons += [
        _Reason(f"{result.threshold.expression} failed", latency=result.threshold.unit == "ms" and not result.sure)
        for result in ending.thresholds
        if result.status == "fail"
    ]
    reasons += [
        _Reason(_worse(comparison), latency=True) for comparison in ending.comparisons if comparison.status == "fail"
    ]
    return reasons


def _worse(comparison: Comparison) -> str:
    if comparison.ratio is None:
        return f"{comparison.name} is worse than its baseline: {comparison.reason}"
    return f"{comparison.name} is {comparison.ratio:.2f} times its baseline"


def _doubts(ending: RunEnding) -> list[str]:
    doubts = []
    if ending.imbalances or not ending.tally.balanced:
        what = "; ".join(ending.imbalances[:3]) or "some turns have no end, or two"
        doubts.append(f"the books do not balance: {what}")
    if ending.generator_died is not None:
        doubts.append(f"the load generator died: {ending.generator_died}")
    if ending.tally.started == 0:
        doubts.append("no turn was started")
    if ending.generator_bound is not None:
        doubts.append(f"the load generator was the bottleneck: {ending.generator_bound}")
    doubts += [f"{what} ended the load before its time" for what in ending.bounds]
    if ending.capacity_unclear is not None:
        doubts.append(ending.capacity_unclear)
    doubts += [
        f"{result.threshold.expression} is inconclusive: {result.reason}"
        for result in ending.thresholds
        if result.status == "inconclusive"
    ]
    doubts += [f"{c.name} is inconclusive: {c.reason}" for c in ending.comparisons if c.status == "inconclusive"]
    return doubts
