"""One scope in one window: its figures, what it is called, and when it is worth a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentao_gov.budget.admission import Answer, Level
from agentao_gov.budget.store import Crossing, Refused
from agentao_gov.budget.types import Balance, ReserveRequest, Scope
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

#: Soft thresholds are written down in thousandths: integers only.
THOUSANDTHS = 1000

#: Scope, zone and window: what a balance is of.
BalanceKey = tuple[Scope, str, str]


@dataclass(slots=True)
class BalanceRecord:
    """One scope in one window, as a store keeps it. `Balance` is the same as users see it."""

    key: BalanceKey
    #: How the journal refers to it; empty as long as no store keeps it.
    ref: str = ""
    #: The limit that the last call was admitted under; grants come on top. None: unlimited.
    limit: int | None = None
    granted: int = 0
    used: int = 0
    reserved: int = 0
    #: The part of `used` that no provider reported.
    estimated: int = 0
    #: Trillionths of a US dollar.
    cost: int = 0
    #: The part of `used` whose model has no price.
    unpriced: int = 0
    #: Highest soft threshold reported and not fallen below since, as a fraction of the limit.
    warned: float = 0.0

    def level(self, limit: int | None) -> Level:
        """What admission looks at, under the limit that the call states."""
        return Level(None if limit is None else limit + self.granted, self.used, self.reserved)

    def public(self, limit: int | None) -> Balance:
        """The balance as users see it, under that limit."""
        scope, timezone, window = self.key
        effective = None if limit is None else limit + self.granted
        return Balance(
            scope,
            window,
            timezone,
            effective,
            self.used,
            self.reserved,
            self.estimated,
            self.granted,
            self.cost,
            self.unpriced,
        )


def balance_name(key: BalanceKey) -> str:
    """A balance's name in the journal: `session:acme/s-1 UTC 2026-11-22`."""
    scope, timezone, window = key
    return f"{scope} {timezone} {window}"


def within_window(calendar: WindowCalendar, key: BalanceKey, now_s: float) -> float | None:
    """Seconds until the balance's window ends; None for a turn's."""
    _, timezone, window = key
    if window == TURN_WINDOW:
        return None
    return max(0.0, calendar.window(timezone, now_s).end_s - now_s)


def refusal(answer: Answer, balance: Balance, request: ReserveRequest, retry_after_s: float | None) -> Refused:
    """The refusal with the figures of the scope that says no."""
    impossible = answer is Answer.IMPOSSIBLE
    return Refused(
        "impossible" if impossible else "exhausted",
        balance.scope,
        balance.window,
        balance.limit or 0,
        balance.used,
        balance.reserved,
        request.prompt_tokens + request.output_tokens_min,
        None if impossible else retry_after_s,
    )


def crossed(balance: BalanceRecord, used: int, warn_at: Sequence[float]) -> tuple[str, Crossing] | None:
    """The highest of the fractions `warn_at` that the balance passes with `used` tokens more, unless it was reported.

    Returns the balance's reference and the crossing.
    """
    if balance.limit is None or not warn_at:
        return None
    limit, total = balance.limit + balance.granted, balance.used + used
    if total < warn_at[0] * limit:
        return None
    passed = max(fraction for fraction in warn_at if total >= fraction * limit)
    if passed <= balance.warned:
        return None
    scope, _, window = balance.key
    return balance.ref, Crossing(scope, window, passed, total, limit)


def still_passed(balance: BalanceRecord, warn_at: Sequence[float]) -> float:
    """The highest of the fractions `warn_at` that the balance stands above; as reported last where nothing limits."""
    if balance.limit is None:
        return balance.warned
    limit = balance.limit + balance.granted
    return max([fraction for fraction in warn_at if balance.used >= fraction * limit], default=0.0)
