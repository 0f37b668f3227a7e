"""Turns into the report's parts: the books, latencies and tokens, as a whole and by profile and tenant. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentao_gov.loadtest.document import Group, Percentiles, Turns
from agentao_gov.loadtest.measure import Figures, grouped, measure
from agentao_gov.loadtest.options import Options
from agentao_gov.loadtest.samples import TurnSample
from agentao_gov.loadtest.thresholds import Threshold

__all__ = ["cost_of", "groups_part", "latency_part", "rounded", "tokens_part", "turns_part"]

_SHOWN = ("turn", "service", "first_token", "queue", "gap", "session")


def turns_part(figures: Figures) -> Turns:
    rates = {name: rounded(value, 6) for name, value in figures.rates.items()}
    return Turns(
        **figures.tally.to_dict(),
        rate_per_s=rates["turns_per_s"],
        goodput_per_s=rates["goodput_per_s"],
        error_rate=rates["error_rate"],
        rejection_rate=rates["rejection_rate"],
    )


def latency_part(figures: Figures) -> dict[str, Percentiles]:
    return {name: Percentiles.model_validate(figures.histograms[name].summary_ms()) for name in _SHOWN}


def tokens_part(figures: Figures, options: Options) -> dict[str, float | int | None]:
    return {
        "prompt": figures.prompt_tokens,
        "completion": figures.completion_tokens,
        "total": figures.tokens,
        "per_s": rounded(figures.rates["tokens_per_s"]),
        "llm_calls": figures.llm_calls,
        "cost": rounded(cost_of(figures, options), 6),
    }


def cost_of(figures: Figures, options: Options) -> float | None:
    """Prices are per million tokens; None where nobody stated one."""
    if options.price is None:
        return None
    return (figures.prompt_tokens * options.price[0] + figures.completion_tokens * options.price[1]) / 1e6


def groups_part(
    samples: Sequence[TurnSample], duration_s: float, thresholds: Sequence[Threshold], options: Options, key: str
) -> dict[str, Group]:
    groups = {}
    for name, inside in grouped(samples, lambda sample: str(getattr(sample, key))).items():
        figures = measure(inside, duration_s, thresholds)
        groups[name] = Group(
            turns=turns_part(figures), latency_ms=latency_part(figures), tokens=tokens_part(figures, options)
        )
    return groups


def rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
