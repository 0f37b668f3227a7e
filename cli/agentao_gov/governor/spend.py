"""One model request in the ledger: reserved, dispatched, and then settled, charged or released, exactly once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

from agentao.llm._usage import cache_token_counts, reasoning_token_count

from agentao_gov.budget import CancelledWait
from agentao_gov.budget.types import CALL_TOKENS_MAX, Reservation, ReserveRequest
from agentao_gov.errors import BudgetExhaustedError, BudgetImpossibleError, GovError, StoreError, TurnTimeoutError
from agentao_gov.governor.classify import StopCause
from agentao_gov.governor.report import Reason
from agentao_gov.governor.turn import CallUsage, Turn

# ── the reservation ───────────────────────────────────────────────────────────────────────────────


class ReservationRefused(Exception):
    """Raised when the ledger says no. The turn is already stopped then, for the reason that `error` names."""

    def __init__(self, error: GovError) -> None:
        super().__init__(str(error))
        self.error = error


class Spend:
    """The reservation of one request. Owned by the thread that makes the call."""

    def __init__(self, turn: Turn, reservation: Reservation, *, subtree: bool) -> None:
        self._turn = turn
        self._reservation = reservation
        self._subtree = subtree
        self._granted = reservation.output_tokens
        self._dispatched = False
        self._ended = False
        #: What was charged, once it ended.
        self.usage = CallUsage(0, 0)

    @classmethod
    def reserve(cls, turn: Turn, prompt_tokens: int, output_tokens_max: int, *, subtree: bool) -> Spend:
        """Holds tokens for a request, waiting until they are there, the deadline comes or the turn is stopped.

        `prompt_tokens` is the most that the prompt can be, `output_tokens_max` the most that is wanted for the answer;
        less may be granted. `subtree` tells that a sub-agent asks. Raises ReservationRefused.
        """
        if turn.stopped:
            raise ReservationRefused(CancelledWait("The turn was stopped."))
        cancelled = threading.Event()
        forget = turn.token.add_done_callback(cancelled.set)
        request = ReserveRequest(
            id=uuid.uuid4().hex,
            scopes=turn.scopes,
            prompt_tokens=prompt_tokens,
            output_tokens_min=min(turn.limits.output_tokens_min, output_tokens_max),
            output_tokens_max=output_tokens_max,
            tenant=turn.labels.key.tenant,
            user=turn.labels.user,
            model=turn.labels.model,
        )
        try:
            reservation = turn.ledger.reserve(request, deadline=turn.deadline, cancelled=cancelled)
        except GovError as error:
            cls._refuse(turn, error)
            raise ReservationRefused(error) from error
        finally:
            forget()
        return cls(turn, reservation, subtree=subtree)

    @staticmethod
    def _refuse(turn: Turn, error: GovError) -> None:
        match error:
            case BudgetExhaustedError():
                turn.stop(StopCause.BUDGET_EXHAUSTED, Reason.of(error))
            case BudgetImpossibleError():
                turn.stop(StopCause.BUDGET_IMPOSSIBLE, Reason.of(error))
            case TurnTimeoutError():
                turn.stop(StopCause.DEADLINE, Reason("The turn waited for tokens until its deadline."))
            case CancelledWait():
                pass
            case _:
                turn.stop(StopCause.STORE, Reason.of(error))

    @property
    def granted_tokens(self) -> int:
        """What the answer may be at most: the `max_tokens` to send."""
        return self._granted

    @property
    def bound(self) -> tuple[int, int]:
        """The most the request can cost: prompt, completion."""
        return self._reservation.prompt_tokens, self._granted

    def dispatch(self) -> None:
        """Journals that the request goes out now. Raises ReservationRefused where it must not, because that failed."""
        try:
            self._turn.ledger.dispatch(self._reservation.id)
        except GovError as error:
            self._turn.stop(StopCause.STORE, Reason.of(error))
            # It may be held, or even stand as sent, where only the answer was lost. Nobody but us can give it back:
            # neighbours take nothing from a process that lives.
            self.release()
            raise ReservationRefused(error) from error
        self._dispatched = True

    def extend(self, tokens: int) -> bool:
        """Asks for up to `tokens` more output for a running stream; False where none are to be had."""
        try:
            more = self._turn.ledger.extend(self._reservation.id, tokens)
        except StoreError:
            return False
        self._granted += more
        return more > 0

    def end(self, usage: CallUsage | None) -> None:
        """Posts what the request used. None: it never left, or the provider answered that it will not serve it."""
        if usage is None and not self._dispatched:
            self.release()
        elif not self._ended:
            self._ended = True
            self._post(usage or CallUsage(0, 0))

    def release(self) -> None:
        """Gives back what was held, because the request was not made."""
        if self._ended:
            return
        self._ended = True
        self._record(lambda: self._turn.ledger.release(self._reservation.id))

    def _post(self, usage: CallUsage) -> None:
        self.usage = usage
        self._turn.meter.charge(usage, subtree=self._subtree)
        ledger, call_id = self._turn.ledger, self._reservation.id
        prompt, completion, estimated = usage.prompt_tokens, usage.completion_tokens, usage.estimated_tokens
        if estimated and estimated == usage.total_tokens:
            self._record(lambda: ledger.charge_estimate(call_id, prompt, completion))
        else:
            self._record(lambda: ledger.settle(call_id, prompt, completion, estimated_tokens=estimated))

    def _record(self, act: Callable[[], None]) -> None:
        """The call is over either way: a store that fails now is a warning, and fails the next reservation."""
        try:
            act()
        except StoreError as error:
            # The row stays `dispatched`, which recovery charges with its bound: nothing is given away.
            self._turn.warn(Reason.of(error).after("The ledger could not record a call: "))


# ── what a provider says that a request used ──────────────────────────────────────────────────────


def reported_usage(usage: Any) -> CallUsage | None:
    """What the provider reports in `usage`, whatever a gateway made of it; None where it cannot be true.

    No prompt has zero tokens.

    What was thought and what was cached are parts of completion and prompt. xAI and Gemini leave the thoughts out of
    `completion_tokens` and count them in `total_tokens` alone, gateways before Anthropic leave out what was cached:
    a part that is larger than its whole, and what the total has beyond both, were billed on top.
    """
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if not prompt or completion is None:
        return None
    read, written = cache_token_counts(usage)
    if read + written > prompt:
        prompt += read + written
    reasoning = reasoning_token_count(usage)
    if reasoning > completion:
        completion += reasoning
    completion = max(completion, (_count(usage, "total_tokens") or 0) - prompt)
    return CallUsage(
        min(prompt, CALL_TOKENS_MAX),
        min(completion, CALL_TOKENS_MAX),
        cached_tokens=min(read, CALL_TOKENS_MAX),
        cache_write_tokens=min(written, CALL_TOKENS_MAX),
        reasoning_tokens=min(reasoning, CALL_TOKENS_MAX),
    )


def larger(one: CallUsage | None, other: CallUsage) -> CallUsage:
    """Of two reports of one request: a count that goes on never shrinks, so each figure is the larger one."""
    if one is None:
        return other
    return CallUsage(
        max(one.prompt_tokens, other.prompt_tokens),
        max(one.completion_tokens, other.completion_tokens),
        cached_tokens=max(one.cached_tokens, other.cached_tokens),
        cache_write_tokens=max(one.cache_write_tokens, other.cache_write_tokens),
        reasoning_tokens=max(one.reasoning_tokens, other.reasoning_tokens),
    )


def _count(usage: Any, name: str) -> int | None:
    """A count of tokens; None for anything else. `12.0` is what some gateways make of 12."""
    value = getattr(usage, name, None)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return value
