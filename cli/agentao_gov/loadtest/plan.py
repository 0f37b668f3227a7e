"""The plan of a load test: everything the generator has to know, as one value that survives a trip through JSON.

`turns_of` unfolds an open-loop stream into its turns, each with its intended start. It is pure and seeded: the command
counts from it in a dry run, and each worker plays its own share of the very same list. What people ask, per kind of
task, is drawn from distributions whose figures are our own choices, made to be plausible; `--replay` puts recorded
turns in their place.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentao_gov.loadtest.schedule import Process, RecordedTurn, Segment, Shape, expected_count, schedule

#: What agentao's system prompt and tool descriptions cost on every call (measured on 0.5.17).
OVERHEAD_TOKENS_PER_CALL = 5_200
_TOOL_S = 0.02
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
#: Of a closed loop, how many sessions its estimate draws.
_SESSIONS_DRAWN_MAX = 2_000
_TAKING_TURNS = 1_000


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


def _geometric(rng: random.Random, mean: float) -> int:
    """0, 1, 2, ... with this mean."""
    if mean <= 0:
        return 0
    return int(math.log(1 - rng.random()) / math.log(mean / (1 + mean)))


def _lognormal(rng: random.Random, median: float, sigma: float) -> float:
    return median * math.exp(rng.gauss(0, sigma))


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoadStream(_Value):
    """One kind of load within a phase: who, in which loop, how much."""

    name: str = "load"
    #: `open`: turns start when the schedule says. `closed`: sessions that think between turns.
    loop: Literal["open", "closed"]
    #: Turns per second (open) or sessions (closed) over time.
    segments: tuple[Segment, ...]
    process: Process = "poisson"
    tenants: tuple[str, ...] = ("default",)
    #: Profile and weight.
    mix: dict[str, float] = {"qa": 1.0}
    #: Open loop: at most so many sessions take turns; None: as many as the schedule needs.
    population: int | None = None
    #: Closed loop: sessions started per second; None: all within a tenth of the phase.
    spawn_rate: float | None = None


class Phase(_Value):
    """A stretch of load that is measured as one: a whole run, or one probe of a capacity search."""

    index: int = 0
    label: str = "load"
    duration_s: float
    #: After the last start, how long turns in flight may take before they count as unfinished.
    drain_s: float
    streams: tuple[LoadStream, ...]
    #: Wall time of the phase's second 0; workers align on it.
    start_epoch: float = 0.0


class LoadPlan(_Value):
    """What does not change between phases."""

    run_id: str
    target: str
    #: `native`: `POST /v1/sessions/{id}/turns` as an event stream. `openai`: `POST /v1/chat/completions`, streaming.
    api: Literal["native", "openai"] = "native"
    shape: Shape = "constant"
    seed: int = 0
    #: Task of each profile, which decides its distributions.
    tasks: dict[str, str] = {}
    #: A tool each profile allows, for tool loops; None: no tool loops.
    tools: dict[str, str | None] = {}
    #: Seconds after which the client gives a turn up, by profile.
    timeouts_s: dict[str, float] = {}
    default_timeout_s: float = 120.0
    #: Whether prompts carry instructions for the simulated model.
    directives: bool = True
    first_token_s: float = 0.2
    per_token_s: float = 0.005
    turns_per_session: int | None = None
    think_scale: float = 1.0
    #: False: every turn of a task is the median one, and profiles take turns by their weights.
    variation: bool = True
    #: How long a refused client of a closed loop waits at most before it comes again.
    backoff_s_max: float = 2.0
    workers: int = 1
    #: Upper bounds of the whole run; the generator starts nothing beyond.
    max_turns: int | None = None
    max_tokens: int | None = None
    #: Sessions are deleted at the target when a phase is over.
    delete_sessions: bool = True
    #: A session is deleted as soon as its last turn has ended: in a soak, resident sessions must not look like a leak.
    delete_finished: bool = False
    #: Recorded turns to play instead of drawing sessions. The turns, not their file: workers may be elsewhere.
    recording: tuple[RecordedTurn, ...] | None = None
    replay_speed: float = Field(default=1.0, gt=0)

    @property
    def pace(self) -> Pace:
        """How fast the simulated model is told to be."""
        return Pace(self.first_token_s, self.per_token_s)

    def timeout_s(self, profile: str) -> float:
        """How long the client waits for a turn of this profile."""
        return self.timeouts_s.get(profile, self.default_timeout_s)


@dataclass(frozen=True, slots=True)
class SessionDraw:
    """One session to be: who talks, and what the turns are."""

    id: str
    number: int
    tenant: str
    user: str
    profile: str
    turns: tuple[TurnShape, ...]
    #: Recorded questions, where there are any.
    messages: tuple[str | None, ...] = ()

    def message(self, plan: LoadPlan, index: int) -> str:
        """What the `index`-th turn says, with a script for the simulated model where the `plan` has directives."""
        tool = plan.tools.get(self.profile, "glob")
        label = f"{self.profile} session {self.number} turn {index + 1}"
        text = self.messages[index] if self.messages else None
        return prompt_of(self.turns[index], label, directive=plan.directives, pace=plan.pace, tool=tool, text=text)


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """One turn with its intended start, seconds since the phase's start."""

    intended_s: float
    session: SessionDraw
    index: int


def draw(plan: LoadPlan, phase: Phase, stream: LoadStream, number: int) -> SessionDraw:
    """The `number`-th session of a stream: the same for the same seed, whichever worker asks."""
    rng = random.Random(f"session:{plan.seed}:{phase.index}:{stream.name}:{number}")  # noqa: S311
    profile = (
        rng.choices(list(stream.mix), list(stream.mix.values()))[0]
        if plan.variation
        else _taking_turns(tuple(stream.mix.items()))[number % _TAKING_TURNS]
    )
    shapes = draw_session(
        plan.tasks.get(profile, profile),
        rng,
        turns=plan.turns_per_session,
        think_scale=plan.think_scale,
        variation=plan.variation,
    )
    return SessionDraw(
        id=f"lt-{plan.run_id}-{phase.index}-{stream.name}-{number}",
        number=number,
        tenant=stream.tenants[number % len(stream.tenants)],
        # One user a session: a cap per user is the checklist's business, not the load's.
        user=f"lt-user-{number}",
        profile=profile,
        turns=shapes,
    )


@lru_cache(maxsize=8)
def _taking_turns(mix: tuple[tuple[str, float], ...]) -> tuple[str, ...]:
    """Profiles in turn, each time the one furthest behind its share.

    A thousand of them, which repeat: that holds any mix with weights to a tenth of a percent.
    """
    total = sum(weight for _, weight in mix)
    given = dict.fromkeys((profile for profile, _ in mix), 0)
    names = []
    for count in range(1, _TAKING_TURNS + 1):
        behind = {profile: weight / total * count - given[profile] for profile, weight in mix}
        name = max(behind, key=behind.__getitem__)
        given[name] += 1
        names.append(name)
    return tuple(names)


def turns_of(plan: LoadPlan, phase: Phase, stream: LoadStream) -> Iterator[TurnPlan]:
    """An open-loop stream's turns in the order of their intended starts.

    Each arrival goes to the session that has waited longest since it became ready (its pause is over); where none is
    ready a new session starts, unless the population is complete: then the one that is ready next is taken early.
    """
    if plan.recording is not None:
        yield from _replayed(plan, phase, stream, plan.recording)
        return
    ready: list[tuple[float, int, SessionDraw, int]] = []
    born = 0
    seed = hash_seed(plan.seed, phase.index, stream.name)
    for at_s in schedule(stream.segments, seed=seed, process=stream.process):
        full = stream.population is not None and len(ready) >= stream.population
        if ready and (ready[0][0] <= at_s or full):
            _, _, session, index = heapq.heappop(ready)
        else:
            session, index = draw(plan, phase, stream, born), 0
            born += 1
        yield TurnPlan(at_s, session, index)
        if index + 1 < len(session.turns):
            turn = session.turns[index]
            free_s = at_s + turn.nominal_s(plan.pace) + turn.think_s
            heapq.heappush(ready, (free_s, session.number, session, index + 1))


def _replayed(plan: LoadPlan, phase: Phase, stream: LoadStream, turns: Sequence[RecordedTurn]) -> Iterator[TurnPlan]:
    """Recorded turns at their recorded distances; sessions go to the stream's tenants in turn."""
    sessions: dict[str, list[RecordedTurn]] = {}
    for turn in turns:
        sessions.setdefault(turn.session, []).append(turn)
    draws = {}
    for number, (name, recorded) in enumerate(sessions.items()):
        known = recorded[0].profile if recorded[0].profile in stream.mix else next(iter(stream.mix))
        draws[name] = SessionDraw(
            id=f"lt-{plan.run_id}-{phase.index}-{stream.name}-{number}",
            number=number,
            tenant=stream.tenants[number % len(stream.tenants)],
            user=f"lt-user-{number}",
            profile=str(known),
            turns=tuple(TurnShape(turn.tool_rounds, turn.answer_tokens, 40, 0.0) for turn in recorded),
            messages=tuple(turn.message for turn in recorded),
        )
    played: dict[str, int] = {}
    for turn in turns:
        index = played.get(turn.session, 0)
        played[turn.session] = index + 1
        yield TurnPlan(turn.at_s / plan.replay_speed, draws[turn.session], index)


def hash_seed(*parts: object) -> int:
    """A seed from parts that is the same in every process, unlike `hash`."""
    return random.Random(":".join(map(str, parts))).getrandbits(48)  # noqa: S311


@dataclass(slots=True)
class Estimate:
    """What a plan should come to."""

    duration_s: float = 0.0
    turns: int = 0
    sessions: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    llm_calls: int = 0
    turns_by_profile: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, other: Estimate, *, times: float = 1.0) -> None:
        """Adds what another one counted, so many times over; durations stay."""
        for name in ("turns", "sessions", "prompt_tokens", "completion_tokens", "llm_calls"):
            setattr(self, name, getattr(self, name) + round(times * getattr(other, name)))
        for profile, count in other.turns_by_profile.items():
            self.turns_by_profile[profile] = self.turns_by_profile.get(profile, 0) + round(times * count)

    def cost(self, price_prompt: float, price_completion: float) -> float:
        """The bill, prices per million tokens."""
        return (self.prompt_tokens * price_prompt + self.completion_tokens * price_completion) / 1e6


def estimate(plan: LoadPlan, phases: Sequence[Phase]) -> Estimate:
    """Expected turns, tokens and calls: counted from the schedule where there is one, computed for a closed loop."""
    total = Estimate(duration_s=sum(phase.duration_s for phase in phases))
    for phase in phases:
        for stream in phase.streams:
            if stream.loop == "open":
                sessions = set()
                for turn in turns_of(plan, phase, stream):
                    _count(total, turn)
                    sessions.add(turn.session.number)
                total.sessions += len(sessions)
            else:
                _add_closed(total, plan, phase, stream)
    return total


def _count(total: Estimate, turn: TurnPlan) -> None:
    shape = turn.session.turns[turn.index]
    prompt, completion = shape.expected_tokens(turn.index)
    total.turns += 1
    total.prompt_tokens += prompt
    total.completion_tokens += completion
    total.llm_calls += shape.llm_calls
    by_profile = total.turns_by_profile
    by_profile[turn.session.profile] = by_profile.get(turn.session.profile, 0) + 1


def _add_closed(total: Estimate, plan: LoadPlan, phase: Phase, stream: LoadStream) -> None:
    """About the turns a closed loop will have: session-seconds filled with nominal turns and pauses.

    So many sessions are drawn at most; the rest is taken to be like them.
    """
    left_s = expected_count(stream.segments)
    drawn = Estimate()
    spent_s = 0.0
    while spent_s < left_s and drawn.sessions < _SESSIONS_DRAWN_MAX:
        session = draw(plan, phase, stream, drawn.sessions)
        drawn.sessions += 1
        for index, turn in enumerate(session.turns):
            if spent_s >= left_s:
                break
            _count(drawn, TurnPlan(0.0, session, index))
            spent_s += max(0.001, turn.nominal_s(plan.pace) + turn.think_s)
    total.add(drawn, times=max(1.0, left_s / spent_s) if spent_s else 1.0)
