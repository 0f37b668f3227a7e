"""Shapes for a plain Locust run: `LOADTEST_SHAPE=ramp LOADTEST_USERS=50 LOADTEST_SECONDS=300 locust -f ...`.

The same words and curves as `agentao-gov loadtest --shape`, in users instead of turns per second.
"""

from __future__ import annotations

import os

from locust import LoadTestShape

from agentao_gov.loadtest.schedule import level_at, segments


def chosen_shape() -> type[LoadTestShape] | None:
    """The shape the environment asks for; None: Locust's own `--users`, `--spawn-rate` and `--run-time` rule."""
    word = os.environ.get("LOADTEST_SHAPE")
    if not word:
        return None
    users = int(os.environ.get("LOADTEST_USERS", "20"))
    seconds = float(os.environ.get("LOADTEST_SECONDS", "60"))
    parts = segments(word, users, seconds)  # type: ignore[arg-type]

    class Shape(LoadTestShape):
        def tick(self) -> tuple[int, float] | None:
            at_s = self.get_run_time()
            if at_s >= seconds:
                return None
            level = round(level_at(parts, at_s))
            return level, max(1.0, level)

    return Shape
