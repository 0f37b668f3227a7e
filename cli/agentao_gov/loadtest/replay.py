"""Recorded turns as a load: a file of TurnReports (`run --batch --output`), or one of agentao's replay files.

Sessions keep their turns' distances in time, divided by the speed. TurnReports hold no questions, so their turns ask a
generic one; the simulated model plays the recorded rounds of tools and length of answer either way. Pure but for
reading the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from agentao_gov.errors import ConfigError

__all__ = ["RecordedTurn", "load_replay", "span_s"]

#: Where a recording does not say: words of an answer to tokens. Only the simulated model's length depends on it.
_TOKENS_PER_WORD = 4 / 3
_ANSWER_TOKENS = 120


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
    """The turns in the order of their starts. Raises ConfigError for a file that holds none."""
    try:
        records = list(_records(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--replay {path}: {error}") from None
    replay = any(record.get("kind") == "replay_header" for record in records)
    found = list(_from_replay(records) if replay else _from_reports(records))
    if not found:
        raise ConfigError(
            f"--replay {path} holds no turns.", hint="Give a file of TurnReports, one a line, or agentao's replay file."
        )
    first = min(at for at, _ in found)
    turns = (_shifted(turn, at - first) for at, turn in found)
    return tuple(sorted(turns, key=lambda turn: (turn.at_s, turn.session)))


def span_s(turns: Iterable[RecordedTurn], speed: float) -> float:
    """Seconds from the first start to the last."""
    return max((turn.at_s for turn in turns), default=0.0) / speed


def _records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # An interrupted recording ends in half a line.
        if isinstance(record, dict):
            yield record


def _from_reports(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, RecordedTurn]]:
    for record in records:
        if record.get("schema") != "agentao-gov/turn-report/1":
            continue
        usage = record.get("usage") or {}
        yield (
            _epoch(record["started_at"]),
            RecordedTurn(
                at_s=0.0,
                session=str(record.get("session", "")),
                profile=str(record["profile"]),
                message=None,
                tool_rounds=max(0, int(record.get("iterations") or 1) - 1),
                answer_tokens=max(1, int(usage.get("completion_tokens") or _ANSWER_TOKENS)),
            ),
        )


def _from_replay(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, RecordedTurn]]:
    turns: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if record.get("turn_id"):
            turns.setdefault(str(record["turn_id"]), []).append(record)
    for events in turns.values():
        kinds = [str(event.get("kind")) for event in events]
        if "user_message" not in kinds:
            continue
        asked = events[kinds.index("user_message")]
        calls = kinds.count("llm_call_completed") or kinds.count("tool_started") + 1
        yield (
            _epoch(asked["ts"]),
            RecordedTurn(
                at_s=0.0,
                session=str(asked.get("session_id", "")),
                profile=None,
                message=str(_payload(asked).get("content") or "") or None,
                tool_rounds=max(0, calls - 1),
                answer_tokens=_answer_tokens(events),
            ),
        )


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
    return datetime.fromisoformat(str(text)).timestamp()


def _shifted(turn: RecordedTurn, at_s: float) -> RecordedTurn:
    return RecordedTurn(at_s, turn.session, turn.profile, turn.message, turn.tool_rounds, turn.answer_tokens)
