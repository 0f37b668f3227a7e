"""What the published tables recommend, and the warnings for values outside of it."""

from __future__ import annotations

from collections.abc import Iterator

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import Layers
from agentao_gov.config.model_table import known_model
from agentao_gov.config.profile import Profile, Task, Tier
from agentao_gov.config.units import format_duration
from agentao_gov.config.validate import finding

__all__ = ["ITERATIONS", "TURN_TIMEOUT_S", "recommendations"]

#: LLM calls per turn by task. For a task of one's own the whole span of the table is sensible.
ITERATIONS: dict[Task, tuple[int, int]] = {
    "qa": (20, 30),
    "code": (80, 150),
    "research": (200, 500),
    "custom": (1, 500),
}
#: Seconds by tier. After two minutes a person who waits has left; a batch is set per task, up to a day.
TURN_TIMEOUT_S: dict[Tier, tuple[float, float]] = {
    "interactive": (60.0, 120.0),
    "background": (300.0, 1800.0),
    "batch": (1.0, 86400.0),
}


def recommendations(profile: Profile, layers: Layers, model_name: str | None) -> Iterator[Finding]:
    """A warning for each value outside the range for its task, tier or model."""
    limits = profile.limits
    low, high = ITERATIONS[profile.task]
    if not low <= limits.max_iterations <= high:
        text = f"{limits.max_iterations} is outside {low}-{high}, recommended for task {profile.task!r}"
        yield finding(layers, "limits.max_iterations", text, error=False)
    first, last = TURN_TIMEOUT_S[profile.tier]
    if not first <= limits.turn_timeout_s <= last:
        span = f"{format_duration(first)}-{format_duration(last)}"
        text = f"{format_duration(limits.turn_timeout_s)} is outside {span}, recommended for tier {profile.tier!r}"
        yield finding(layers, "limits.turn_timeout", text, error=False)
    if limits.turn_tokens < limits.max_output_tokens:
        text = f"{limits.turn_tokens} is less than one call's max_output_tokens of {limits.max_output_tokens}"
        yield finding(layers, "limits.turn_tokens", text, error=False)
    known = known_model(model_name) if model_name else None
    if known and not known.recommended_min <= limits.max_context_tokens <= known.recommended_max:
        text = (
            f"{limits.max_context_tokens:,} is outside {known.recommended_min:,}-{known.recommended_max:,}, "
            f"recommended for {model_name!r} ({known.model_class})"
        )
        yield finding(layers, "limits.max_context_tokens", text, error=False)
