"""One scope in one window: its figures, what it is called, and when it is worth a warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentao_gov.budget.admission import Answer, Level
from agentao_gov.budget.reservation import Posting
from agentao_gov.budget.store import Crossing, Refused
from agentao_gov.budget.types import Balance, ReserveRequest, Scope
from agentao_gov.budget.windows import TURN_WINDOW, WindowCalendar

__all__ = ["Line", "LineKey", "crossed", "crosses", "line_name", "lower_warned", "refusal", "within_window"]

#: Scope, zone and window: what a balance is of.
LineKey = tuple[Scope, str, str]


@dataclass(slots=True)
class Line:
    """One scope in one window. `limit` is the last one a request stated; grants come on top."""

    key: LineKey
    limit: int | None = None
    granted: int = 0
    used: int = 0
    reserved: int = 0
    estimated: int = 0
    cost: int = 0
    unpriced: int = 0
    #: Highest soft threshold reported and not fallen below since.
    warned: float = 0.0
    #: When something was posted last, Unix seconds; kept by the store in memory alone.
    touched_s: float = 0.0

    @property
    def effective_limit(self) -> int | None:
        """The limit with this window's grants."""
        return None if self.limit is None else self.limit + self.granted

    @property
    def level(self) -> Level:
        """What admission looks at."""
        limit = self.limit
        return Level(None if limit is None else limit + self.granted, self.used, self.reserved)

    def add(self, posting: Posting) -> None:
        """One step of one call."""
        _, used, reserved, estimated, cost, unpriced = posting
        self.used += used
        self.reserved += reserved
        self.estimated += estimated
        self.cost += cost
        self.unpriced += unpriced

    @property
    def balance(self) -> Balance:
        """The line as users see it."""
        scope, timezone, window = self.key
        return Balance(
            scope,
            window,
            timezone,
            self.effective_limit,
            self.used,
            self.reserved,
            self.estimated,
            self.granted,
            self.cost,
            self.unpriced,
        )


def line_name(key: LineKey) -> str:
    """A line's name in the journal: `session:acme/s-1 UTC 2026-11-22`."""
    scope, timezone, window = key
    return f"{scope} {timezone} {window}"


def within_window(calendar: WindowCalendar, key: LineKey, now_s: float) -> float | None:
    """Seconds until the line's window ends; None for a turn's."""
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


def crosses(line: Line, used: int, warn_at: Sequence[float]) -> float:
    """The highest threshold that `used` passes and that was not reported yet; 0 for none."""
    limit = line.effective_limit
    if limit is None or not warn_at or used < warn_at[0] * limit:
        return 0.0
    return max([fraction for fraction in warn_at if fraction > line.warned and used >= fraction * limit], default=0.0)


def crossed(line: Line, warn_at: Sequence[float]) -> Crossing | None:
    """The highest threshold that the line passed since the last one reported; marks it reported."""
    fraction, limit = crosses(line, line.used, warn_at), line.effective_limit
    if not fraction or limit is None:
        return None
    line.warned = fraction
    scope, _, window = line.key
    return Crossing(scope, window, fraction, line.used, limit)


def lower_warned(line: Line, warn_at: Sequence[float]) -> None:
    """After a grant: what is no longer passed may be reported again."""
    limit = line.effective_limit
    if limit is not None:
        still = [fraction for fraction in warn_at if line.used >= fraction * limit]
        line.warned = min(line.warned, max(still, default=0.0))
