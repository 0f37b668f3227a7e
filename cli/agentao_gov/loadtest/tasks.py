"""What people ask of an agent, per kind of task: seeded distributions of turns, tool loops, answers and pauses.

The figures are our own choices, made to be plausible; `--replay` puts recorded turns in their place. Pure.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import Any

__all__ = ["TASKS", "Pace", "TaskShape", "TurnShape", "draw_session", "prompt_of"]

#: What agentao's system prompt and tool descriptions cost on every call (measured on 0.5.17).
OVERHEAD_TOKENS_PER_CALL = 5_200
_TOOL_S = 0.02


@dataclass(frozen=True, slots=True)
class TaskShape:
    """One kind of task. `_p50` is a median of a log-normal, `_mean` of a geometric or Poisson distribution."""

    turns_mean: float
    turns_max: int
    tool_rounds_mean: float
    tool_rounds_max: int
    answer_tokens_p50: int
    prompt_tokens_p50: int
    think_s_p50: float
    #: Sigma of the log-normals: 0.6 puts the 99th percentile at four times the median.
    sigma: float = 0.6


TASKS = {
    "qa": TaskShape(3, 10, 0.3, 3, 120, 40, 8.0),
    "code": TaskShape(4, 12, 3, 12, 250, 300, 20.0),
    "research": TaskShape(2, 5, 6, 20, 600, 120, 30.0),
    "custom": TaskShape(3, 10, 1, 6, 200, 100, 12.0),
}


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the simulated model is: seconds to the first token, and for each token."""

    first_token_s: float = 0.2
    per_token_s: float = 0.005


@dataclass(frozen=True, slots=True)
class TurnShape:
    """One turn to be: what is asked of the model, and the pause before the next turn of the session."""

    tool_rounds: int
    answer_tokens: int
    prompt_tokens: int
    think_s: float

    @property
    def llm_calls(self) -> int:
        """Calls of the tool loop, the answering one included."""
        return self.tool_rounds + 1

    def expected_tokens(self, index: int) -> tuple[int, int]:
        """Prompt and completion tokens this turn should cost as the `index`-th of its session."""
        history = index * (self.prompt_tokens + self.answer_tokens)
        per_call = OVERHEAD_TOKENS_PER_CALL + self.prompt_tokens + history
        return per_call * self.llm_calls, self.answer_tokens + 25 * self.tool_rounds

    def nominal_s(self, pace: Pace) -> float:
        """How long it takes where nothing waits."""
        return self.llm_calls * pace.first_token_s + self.answer_tokens * pace.per_token_s + self.tool_rounds * _TOOL_S


def draw_session(
    task: str, rng: random.Random, *, turns: int | None = None, think_scale: float = 1.0, variation: bool = True
) -> tuple[TurnShape, ...]:
    """The turns of one session. `turns` fixes their number; `think_scale` stretches or removes the pauses.

    Without `variation` every turn is the median one: a capacity probe must differ from the next by its load alone.
    """
    shape = TASKS.get(task, TASKS["custom"])
    if not variation:
        typical = TurnShape(
            round(shape.tool_rounds_mean),
            shape.answer_tokens_p50,
            shape.prompt_tokens_p50,
            think_scale * shape.think_s_p50,
        )
        return (typical,) * (turns or round(shape.turns_mean))
    count = turns or min(shape.turns_max, 1 + _geometric(rng, shape.turns_mean - 1))
    return tuple(_draw_turn(shape, rng, think_scale) for _ in range(count))


def _draw_turn(shape: TaskShape, rng: random.Random, think_scale: float) -> TurnShape:
    return TurnShape(
        tool_rounds=min(shape.tool_rounds_max, _geometric(rng, shape.tool_rounds_mean)),
        answer_tokens=max(1, round(_lognormal(rng, shape.answer_tokens_p50, shape.sigma))),
        prompt_tokens=max(8, round(_lognormal(rng, shape.prompt_tokens_p50, shape.sigma))),
        think_s=think_scale * _lognormal(rng, shape.think_s_p50, shape.sigma),
    )


def prompt_of(
    turn: TurnShape, label: str, *, directive: bool, pace: Pace, tool: str | None = "glob", text: str | None = None
) -> str:
    """The message of a turn. With `directive` it tells a simulated model what to do; a real one gets the text alone.

    `text`: a recorded question instead of a made-up one.
    """
    if text is None:
        words = max(4, int(turn.prompt_tokens * 0.75))
        text = f"Load test, {label}: " + " ".join(_WORDS[i % len(_WORDS)] for i in range(words))
    if not directive:
        return text
    script: dict[str, Any] = {
        "answer_tokens": turn.answer_tokens,
        "first_token": pace.first_token_s,
        "per_token": pace.per_token_s,
    }
    if turn.tool_rounds and tool:
        script["tool"] = {"name": tool, "args": {"pattern": "*.round{round}"}, "rounds": turn.tool_rounds}
    return f"{text}\n@sim {json.dumps(script)}"


_WORDS = (
    "please",
    "look",
    "at",
    "the",
    "figures",
    "of",
    "this",
    "month",
    "and",
    "say",
    "in",
    "short",
    "what",
    "changed",
)


def _geometric(rng: random.Random, mean: float) -> int:
    """0, 1, 2, ... with this mean."""
    if mean <= 0:
        return 0
    return int(math.log(1 - rng.random()) / math.log(mean / (1 + mean)))


def _lognormal(rng: random.Random, median: float, sigma: float) -> float:
    return median * math.exp(rng.gauss(0, sigma))
