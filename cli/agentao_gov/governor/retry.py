"""Whether and when a failed model call is sent again: pure, bounded by a count and by the turn's deadline."""

from __future__ import annotations

import datetime
import email.utils
import re
from dataclasses import dataclass

#: First pause without a Retry-After; doubled each time. agentao waits 7.5 s first, which an interactive turn cannot.
BACKOFF_S = 0.5
BACKOFF_S_MAX = 8.0
#: Share of the pause that is random, so that many sessions do not come back at once.
JITTER = 0.3
_SECONDS = re.compile(r"\d+(\.\d+)?")
#: "try again in 6m0.5s", "retry after 20 seconds", "in 350ms", "retryDelay": "34s".
_ASKED = re.compile(
    r"(?i)(?:try again|retry|retryDelay['\"]?:)\s*(?:in|after)?\s*['\"]?(?:(\d+)m(?=\d))?(\d+(?:\.\d+)?)\s?(ms|s)"
)


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Send again after `delay_s`, or give up for `reason`."""

    again: bool
    delay_s: float = 0.0
    reason: str = ""


def parse_retry_after_s(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None where it says nothing usable.

    `now` is the wall clock's time in seconds since the epoch.
    """
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.UTC)
    return max(0.0, at.timestamp() - now)


def asked_pause_s(error: BaseException, now: float) -> float | None:
    """Seconds that a provider asks to wait, in whatever place it says so; None where it does not.

    `now` is the wall clock's time in seconds since the epoch. Azure has a header in milliseconds, Google a
    `retryDelay`, and OpenAI says it in words.
    """
    headers = getattr(getattr(error, "response", None), "headers", {})
    if _SECONDS.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return float(milliseconds) / 1000
    asked_s = parse_retry_after_s(headers.get("retry-after"), now)
    if asked_s is not None:
        return asked_s
    found = _ASKED.search(f"{error} {getattr(error, 'body', '')}")
    if found is None:
        return None
    minutes, seconds, unit = found.groups()
    return float(minutes or 0) * 60 + float(seconds or 0) / (1000 if unit == "ms" else 1)


def decide_retry(
    *,
    retryable: bool,
    retries_done: int,
    retries_max: int,
    retry_after_s: float | None,
    remaining_s: float,
    jitter: float,
) -> RetryDecision:
    """Decides after a failed attempt whether there is another one, and after which pause.

    `remaining_s` is what the turn has left, `retry_after_s` what the provider asks for (None: nothing); `jitter` in
    0..1 is drawn by the caller. A pause that the deadline would cut is not begun: waiting for a time-out helps nobody,
    and the reason would be lost.
    """
    if not retryable:
        # What does not pass needs no explanation of why it was not tried again.
        return RetryDecision(False)
    if retries_done >= retries_max:
        tries = retries_done + 1
        return RetryDecision(False, reason=f"{tries} attempt{'s' if tries > 1 else ''}, llm_retries is {retries_max}")
    if retry_after_s is not None:
        delay_s = retry_after_s
    else:
        delay_s = min(BACKOFF_S * 2**retries_done, BACKOFF_S_MAX) * (1 + JITTER * jitter)
    if delay_s >= remaining_s:
        return RetryDecision(
            False, reason=f"the provider asks to wait {delay_s:.0f} s and the turn has {remaining_s:.0f} s left"
        )
    return RetryDecision(True, delay_s=delay_s)
