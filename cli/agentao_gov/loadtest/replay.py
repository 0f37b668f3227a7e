"""Recorded turns as a load: a file of TurnReports (`run --batch --output`), or one of agentao's replay files.

Sessions keep their turns' distances in time, divided by the speed. TurnReports hold no questions, so their turns ask a
generic one; the simulated model plays the recorded rounds of tools and length of answer either way. Pure but for
reading the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentao_gov.errors import ConfigError

__all__ = ["RecordedTurn", "load_replay", "mix_of", "span_s", "until"]

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
    """The turns in the order of their starts.

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
