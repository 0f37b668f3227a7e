"""The provider's limits a minute: buckets that fill up steadily, as OpenAI's and Anthropic's do."""

from __future__ import annotations

import math
from collections.abc import Callable

from agentao_gov.simulator.script import ProviderCapacity
from agentao_gov.simulator.wire import RateStand

_MINUTE_S = 60.0


class _Bucket:
    """So much a minute, all of it at once if nothing was taken for a minute."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._at = now

    def left(self, now: float) -> float:
        self._left = min(self.limit, self._left + (now - self._at) * self.limit / _MINUTE_S)
        self._at = now
        return self._left

    def wait_s(self, amount: int, now: float) -> float:
        """Seconds until so much can be taken; what is more than a minute's worth is taken for that."""
        missing = min(amount, self.limit) - self.left(now)
        return max(0.0, missing * _MINUTE_S / self.limit)

    def take(self, amount: int, now: float) -> None:
        self._left = self.left(now) - min(amount, self.limit)


class RateLimits:
    """Requests and tokens a minute. Owned by the server's loop; `clock` counts seconds."""

    def __init__(self, capacity: ProviderCapacity, clock: Callable[[], float]) -> None:
        self._clock = clock
        now = clock()
        limits = {"requests": capacity.requests_per_minute, "tokens": capacity.tokens_per_minute}
        self._buckets = {name: _Bucket(limit, now) for name, limit in limits.items() if limit is not None}

    def admit(self, tokens: int) -> float:
        """Takes a request of so many tokens, prompt and completion, and returns 0, or the seconds until it would fit.

        Providers estimate the completion from `max_tokens`; this one knows what it is about to answer.
        """
        now = self._clock()
        amounts = {"requests": 1, "tokens": tokens}
        wait_s = max((bucket.wait_s(amounts[name], now) for name, bucket in self._buckets.items()), default=0.0)
        if wait_s <= 0:
            for name, bucket in self._buckets.items():
                bucket.take(amounts[name], now)
        return wait_s

    def stands(self) -> list[RateStand]:
        """Where each limit stands now."""
        now = self._clock()
        return [
            RateStand(
                "requests" if name == "requests" else "tokens",
                bucket.limit,
                math.floor(bucket.left(now)),
                (bucket.limit - bucket.left(now)) * _MINUTE_S / bucket.limit,
            )
            for name, bucket in self._buckets.items()
        ]
