"""What a load test would do: its schedule, and what it should come to. Nothing is started for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from agentao_gov.loadtest.plan import Estimate, LoadPlan, Phase

__all__ = ["DryRun", "schedule_of"]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a load test would do."""

    plan: LoadPlan
    estimate: Estimate
    thresholds: tuple[str, ...]
    schedule: tuple[dict[str, float], ...]
    #: What is known already: thresholds that cannot be decided.
    warnings: tuple[str, ...] = ()
    #: Per million prompt and completion tokens.
    price: tuple[float, float] | None = None

    @property
    def cost(self) -> float | None:
        """The bill; None where nobody stated a price."""
        return self.estimate.cost(*self.price) if self.price else None

    def to_dict(self) -> dict[str, Any]:
        """For `--format json`."""
        return {
            "dry_run": True,
            "duration_s": self.estimate.duration_s,
            "turns": self.estimate.turns,
            "sessions": self.estimate.sessions,
            "llm_calls": self.estimate.llm_calls,
            "prompt_tokens": self.estimate.prompt_tokens,
            "completion_tokens": self.estimate.completion_tokens,
            "tokens": self.estimate.tokens,
            "cost": self.cost,
            "turns_by_profile": self.estimate.turns_by_profile,
            "thresholds": list(self.thresholds),
            "schedule": list(self.schedule),
            "max_turns": self.plan.max_turns,
            "max_tokens": self.plan.max_tokens,
            "warnings": list(self.warnings),
            "seed": self.plan.seed,
        }


def schedule_of(phases: Iterable[Phase]) -> tuple[dict[str, float], ...]:
    """The level over time, phase after phase: turns per second, or sessions."""
    rows = []
    passed_s = 0.0
    for phase in phases:
        rows += [
            {
                "from_s": passed_s + part.start_s,
                "to_s": passed_s + part.end_s,
                "level_from": part.level_start,
                "level_to": part.level_end,
            }
            for part in phase.streams[0].segments
        ]
        passed_s += phase.duration_s
    return tuple(rows)
