"""When load arrives: shapes as piecewise-linear rates, and seeded schedules of intended start times.

Pure: no clock, no I/O. The same seed gives the same schedule on every machine, so that workers can each take a share
of one schedule and a run can be repeated.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from agentao_gov.errors import ConfigError

Shape = Literal["constant", "ramp", "steps", "spike", "soak", "capacity"]
#: `poisson`: independent arrivals, what many users look like. `constant`: equal gaps, what a batch looks like.
Process = Literal["poisson", "constant"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
PROCESSES: tuple[Process, ...] = get_args(Process)

_STEPS = 5
_SOAK_WAVES = 6
#: Share of a soak wave without load, in which memory shows what stays.
_SOAK_REST = 0.2
_SPIKE_FACTOR = 5.0
#: Where a recording does not say: words of an answer to tokens. Only the simulated model's length depends on it.
_TOKENS_PER_WORD = 4 / 3
_ANSWER_TOKENS = 120
_REPORT = "agentao-gov/turn-report/1"
#: More than a day of a busy service; the whole recording is held in memory, and goes to every worker.
_BYTES_MAX = 256 * 1024**2
#: What a recording may ask of the simulated model at most: a damaged count must not make one turn endless.
_ROUNDS_MAX = 1_000
_TOKENS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which the level (turns per second, or sessions) goes linearly from one value to another."""

    start_s: float
    end_s: float
    level_start: float
    level_end: float

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return self.end_s - self.start_s

    @property
    def area(self) -> float:
        """The integral of the level: expected arrivals, when the level is a rate."""
        return self.duration_s * (self.level_start + self.level_end) / 2

    def level(self, at_s: float) -> float:
        """The level at a time within the segment."""
        if self.duration_s <= 0:
            return self.level_end
        share = (at_s - self.start_s) / self.duration_s
        return self.level_start + share * (self.level_end - self.level_start)


def segments(shape: Shape, level: float, duration_s: float, *, rise_s: float = 0.0) -> tuple[Segment, ...]:
    """The shape as segments from 0 to `duration_s`.

    Args:
        shape: `capacity` is a search over constant loads, so each of its probes is `constant`.
        level: the peak: turns per second in an open loop, sessions in a closed one. A spike goes to five times that.
        duration_s: total length in seconds.
        rise_s: for `constant`, seconds to rise from nothing at the start.
    """
    if level <= 0 or duration_s <= 0 or not math.isfinite(level * duration_s):
        raise ValueError(f"a load needs a positive level and duration, not {level} for {duration_s} s")
    d = duration_s
    if shape == "ramp":
        return (Segment(0, 0.8 * d, 0, level), Segment(0.8 * d, d, level, level))
    if shape == "steps":
        bounds = [d * i / _STEPS for i in range(_STEPS + 1)]
        return tuple(Segment(bounds[i], bounds[i + 1], *[level * (i + 1) / _STEPS] * 2) for i in range(_STEPS))
    if shape == "spike":
        peak = level * _SPIKE_FACTOR
        return (
            Segment(0, 0.4 * d, level, level),
            Segment(0.4 * d, 0.6 * d, peak, peak),
            Segment(0.6 * d, d, *[level] * 2),
        )
    if shape == "soak":
        return tuple(_soak(level, d))
    rise_s = min(rise_s, d)
    if rise_s > 0:
        return (Segment(0, rise_s, 0, level), Segment(rise_s, d, level, level))
    return (Segment(0, d, level, level),)


def _soak(level: float, duration_s: float) -> Iterator[Segment]:
    wave_s = duration_s / _SOAK_WAVES
    for wave in range(_SOAK_WAVES):
        start_s, rest_s = wave * wave_s, (wave + 1 - _SOAK_REST) * wave_s
        yield Segment(start_s, rest_s, level, level)
        yield Segment(rest_s, (wave + 1) * wave_s, 0, 0)


def expected_count(parts: Sequence[Segment]) -> float:
    """How many arrivals a schedule of these rates has on average."""
    return sum(part.area for part in parts)


def level_at(parts: Sequence[Segment], at_s: float) -> float:
    """The planned level at a time; 0 outside."""
    for part in parts:
        if part.start_s <= at_s < part.end_s:
            return part.level(at_s)
    return 0.0


def schedule(parts: Sequence[Segment], *, seed: int, process: Process = "poisson") -> Iterator[float]:
    """Intended start times in seconds, ascending.

    A non-homogeneous Poisson process by inversion of the cumulative rate (Çinlar 1975): unit-rate arrivals on the
    integral of the rate, mapped back to time. `constant` takes the integers instead of exponential gaps, half a step
    in, so that both offer the same number of arrivals.
    """
    rng = random.Random(f"arrivals:{seed}")  # noqa: S311  a seeded schedule, not a secret
    passed = 0.0
    target = rng.expovariate(1.0) if process == "poisson" else 0.5
    for part in parts:
        while target < passed + part.area:
            yield part.start_s + _invert(part, target - passed)
            target += rng.expovariate(1.0) if process == "poisson" else 1.0
        passed += part.area


def _invert(part: Segment, area: float) -> float:
    """The time into the segment at which its integral reaches `area`."""
    slope = (part.level_end - part.level_start) / part.duration_s
    # The form of the quadratic's root that neither cancels nor divides by a slope near zero.
    root = math.sqrt(max(0.0, part.level_start**2 + 2 * slope * area))
    return min(part.duration_s, 2 * area / (part.level_start + root)) if area > 0 else 0.0


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """One recorded turn. `at_s` counts from the recording's first turn."""

    at_s: float
    session: str
    #: None where the recording does not know profiles.
    profile: str | None
    message: str | None
    tool_rounds: int
    answer_tokens: int


def load_replay(path: Path) -> tuple[RecordedTurn, ...]:
    """The turns of a file of TurnReports (`run --batch --output`) or of agentao's replay, in the order of their starts.

    Sessions keep their turns' distances in time. TurnReports hold no questions, so their turns ask a generic one; the
    simulated model plays the recorded rounds of tools and length of answer either way.
    Raises ConfigError for a file that holds none, is damaged before its last line, or is too large to be played.
    """
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise ConfigError(
                f"--replay {path} has {path.stat().st_size / 1024**2:,.0f} MiB; {_BYTES_MAX // 1024**2} MiB are read.",
                hint=f"Take a part of it: head -n 10000 {path} > part.jsonl",
            )
        with path.open("rb") as file:
            records = list(_records(path, file))
    except OSError as error:
        raise ConfigError(f"--replay {path}: {error.strerror}.") from None
    replay = any(record.get("kind") == "replay_header" for _, record in records)
    found = list(_from_replay(path, records) if replay else _from_reports(path, records))
    if not found:
        raise ConfigError(
            f"--replay {path} holds no turns.", hint="Give a file of TurnReports, one a line, or agentao's replay file."
        )
    first = min(at for at, _ in found)
    turns = (replace(turn, at_s=at - first) for at, turn in found)
    return tuple(sorted(turns, key=lambda turn: (turn.at_s, turn.session)))


def span_s(turns: Iterable[RecordedTurn], speed: float) -> float:
    """Seconds from the first start to the last."""
    return max((turn.at_s for turn in turns), default=0.0) / speed


def until(turns: Sequence[RecordedTurn], seconds: float, speed: float) -> tuple[RecordedTurn, ...]:
    """The turns that start within so many seconds when played at this speed."""
    return tuple(turn for turn in turns if turn.at_s / speed < seconds)


def mix_of(turns: Iterable[RecordedTurn]) -> dict[str, float]:
    """How many turns of each profile were recorded; empty where the recording does not know profiles."""
    return {name: float(count) for name, count in sorted(Counter(t.profile for t in turns if t.profile).items())}


#: A line's number, for messages, and its object.
_Numbered = tuple[int, dict[str, Any]]


def _records(path: Path, file: Iterable[bytes]) -> Iterator[_Numbered]:
    """The lines that are objects. Half a line at the end is left out: an interrupted recording ends so."""
    broken = 0
    for number, line in enumerate(file, 1):
        if broken:
            raise ConfigError(f"--replay {path}, line {broken} is not JSON.", hint="Is it the right file, and whole?")
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            broken = number
            continue
        if isinstance(record, dict):
            yield number, record


def _from_reports(path: Path, records: Iterable[_Numbered]) -> Iterator[tuple[float, RecordedTurn]]:
    for number, record in records:
        if record.get("schema") == _REPORT:
            with _naming(path, number):
                yield _epoch(record["started_at"]), _of_report(record)


def _of_report(record: Mapping[str, Any]) -> RecordedTurn:
    usage = record.get("usage") or {}
    return RecordedTurn(
        at_s=0.0,
        session=str(record.get("session", "")),
        profile=str(record["profile"]),
        message=None,
        tool_rounds=_within(int(record.get("iterations") or 1) - 1, 0, _ROUNDS_MAX),
        answer_tokens=_within(int(usage.get("completion_tokens") or _ANSWER_TOKENS), 1, _TOKENS_MAX),
    )


def _from_replay(path: Path, records: Iterable[_Numbered]) -> Iterator[tuple[float, RecordedTurn]]:
    turns: dict[str, list[_Numbered]] = {}
    for number, record in records:
        if record.get("turn_id"):
            turns.setdefault(str(record["turn_id"]), []).append((number, record))
    for numbered in turns.values():
        events = [event for _, event in numbered]
        kinds = [str(event.get("kind")) for event in events]
        if "user_message" not in kinds:
            continue
        at = kinds.index("user_message")
        with _naming(path, numbered[at][0]):
            yield _epoch(events[at]["ts"]), _of_events(events, kinds, events[at])


def _of_events(events: Sequence[Mapping[str, Any]], kinds: Sequence[str], asked: Mapping[str, Any]) -> RecordedTurn:
    calls = kinds.count("llm_call_completed") or kinds.count("tool_started") + 1
    return RecordedTurn(
        at_s=0.0,
        session=str(asked.get("session_id", "")),
        profile=None,
        message=str(_payload(asked).get("content") or "") or None,
        tool_rounds=_within(calls - 1, 0, _ROUNDS_MAX),
        answer_tokens=_within(_answer_tokens(events), 1, _TOKENS_MAX),
    )


@contextmanager
def _naming(path: Path, number: int) -> Iterator[None]:
    """What is wrong with a record is said with its line."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"--replay {path}, line {number}: {what}.") from None


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))


def _answer_tokens(events: Iterable[Mapping[str, Any]]) -> int:
    """The last call's own count, else its words."""
    counted = [_payload(e).get("completion_tokens") for e in events if e.get("kind") == "llm_call_completed"]
    if counted and isinstance(counted[-1], int):
        return max(1, counted[-1])
    texts = [str(_payload(e).get("chunk", "")) for e in events if e.get("kind") == "assistant_text_chunk"]
    words = len("".join(texts).split())
    return max(1, round(words * _TOKENS_PER_WORD)) if words else _ANSWER_TOKENS


def _payload(event: Mapping[str, Any]) -> Mapping[str, Any]:
    payload = event.get("payload")
    return payload if isinstance(payload, dict) else {}


def _epoch(text: str) -> float:
    """Seconds since 1970; a time without its zone is UTC, so that a recording means the same on every machine."""
    moment = datetime.fromisoformat(str(text))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
