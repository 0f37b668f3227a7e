"""A batch: prompts from a JSON-lines file, and the output that an interrupted one goes on from."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentao_gov.endings import Outcome
from agentao_gov.errors import UsageError
from agentao_gov.governor.types import SESSION_ID, SESSION_ID_RULE

_KEYS = ("id", "prompt", "profile", "session")
#: A turn that ended so was cut short from outside: it is not written, so that the next run does it again.
INTERRUPTED = frozenset({Outcome.CANCELLED, Outcome.SHUTDOWN})


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One line. `id` is the line's own, or its number."""

    id: str | int
    prompt: str
    profile: str | None = None
    session: str | None = None


def read_batch(name: str) -> list[BatchItem]:
    """Every line of a file, or of standard input for `-`. Raises UsageError, as `parse_batch` does."""
    try:
        if name == "-":
            return parse_batch(sys.stdin, name="standard input")
        with Path(name).open(encoding="utf-8") as file:
            return parse_batch(file, name=name)
    except OSError as error:
        raise UsageError(f"The batch file {name!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"The batch file {name!r} is not UTF-8: {error}.") from None


def parse_batch(lines: Iterable[str], *, name: str) -> list[BatchItem]:
    """Every line as an item; empty lines are passed over. A line is `{"id","prompt","profile","session"}`, a JSON
    string, or plain text.

    Raises UsageError with the line's number for one that is none of these, and for an id that comes twice.
    """
    items: list[BatchItem] = []
    seen: dict[str | int, int] = {}
    for number, line in enumerate(lines, 1):
        # Editors on Windows put a byte-order mark before the first line.
        text = (line.removeprefix("\ufeff") if number == 1 else line).strip()
        if not text:
            continue
        item = _parse_line(text, number, f"{name}:{number}")
        if item.id in seen:
            raise UsageError(
                f"{name}:{number}: the id {item.id!r} stands in line {seen[item.id]} too.",
                hint="Ids tell a resumed batch what is done; give each line its own, or none.",
            )
        seen[item.id] = number
        items.append(item)
    return items


def _parse_line(text: str, number: int, place: str) -> BatchItem:
    if text[0] not in '{"':
        return BatchItem(number, text)
    try:
        value = json.loads(text)
    except ValueError as error:
        if text[0] == '"':
            return BatchItem(number, text)
        raise UsageError(f"{place}: this line is not valid JSON: {error}.") from None
    if isinstance(value, str):
        value = {"prompt": value}
    return _from_record(value, number, place)


def _from_record(record: dict[str, Any], number: int, place: str) -> BatchItem:
    unknown = sorted(set(record) - set(_KEYS))
    if unknown:
        raise UsageError(f"{place}: unknown key {unknown[0]!r}; a line has {', '.join(_KEYS)}.")
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{place}: 'prompt' must be a text that is not empty.")
    identity = record.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UsageError(f"{place}: 'id' must be a text or a whole number.")
    for key in ("profile", "session"):
        if record.get(key) is not None and not isinstance(record[key], str):
            raise UsageError(f"{place}: {key!r} must be a text.")
    if record.get("session") is not None and not SESSION_ID.fullmatch(record["session"]):
        raise UsageError(f"{place}: a session id is {SESSION_ID_RULE}.")
    return BatchItem(identity, prompt, record.get("profile"), record.get("session"))


def finished(output: Path) -> dict[str | int, Outcome]:
    """The ids that an earlier run has written, with how each ended; a half-written last line is cut off, to be done
    again.

    Raises UsageError where the file holds something else than reports: it is not overwritten.
    """
    if not output.is_file():
        return {}
    done: dict[str | int, Outcome] = {}
    whole = 0
    with output.open("rb") as file:
        for number, line in enumerate(file, 1):
            if _half_written(line):
                break
            try:
                record = json.loads(line)
                done[record["id"]] = Outcome(record["outcome"])
            except (ValueError, KeyError, TypeError):
                raise UsageError(
                    f"{output}:{number} is not a report of a batch; the file is left as it is.",
                    hint="Give --output another file.",
                ) from None
            whole += len(line)
    if whole < output.stat().st_size:
        with output.open("r+b") as file:
            file.truncate(whole)
    return done


def _half_written(line: bytes) -> bool:
    """Whether a last line is the beginning of a report. Anything else was never ours, and must not be cut off."""
    if line.endswith(b"\n") or not line.startswith(b"{"):
        return False
    try:
        return "outcome" in json.loads(line)
    except ValueError:
        return True


def next_ready(waiting: Sequence[BatchItem], busy_sessions: set[str]) -> BatchItem | None:
    """The first item whose session runs no turn now: the turns of one session keep the file's order."""
    blocked = set(busy_sessions)
    for item in waiting:
        if item.session is None or item.session not in blocked:
            return item
        blocked.add(item.session)
    return None


def batch_exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 if every turn was answered, else the code of the most frequent failure."""
    failures = Counter(outcome.exit_code for outcome in outcomes if outcome.exit_code)
    return failures.most_common(1)[0][0] if failures else 0
