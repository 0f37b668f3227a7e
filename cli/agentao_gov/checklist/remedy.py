"""Remedies: which lines, in which file, make an item pass; written as TOML that can be pasted as it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import tomli_w


@dataclass(frozen=True, slots=True)
class Remedy:
    """Settings to make, and a sentence where settings are not enough.

    `settings` maps keys to values as TOML writes them; a key is dotted, or a tuple where a name may hold dots itself.
    """

    settings: tuple[tuple[str | tuple[str, ...], Any], ...] = ()
    note: str = ""
    #: `deployment` or `profile NAME`.
    file: str = "deployment"


def render(remedies: Iterable[Remedy]) -> str | None:
    """All remedies of an item as one text; None when there are none. Notes are TOML comments."""
    files: dict[str, dict[str, Any]] = {}
    notes: dict[str, list[str]] = {}
    for remedy in remedies:
        table = files.setdefault(remedy.file, {})
        for key, value in remedy.settings:
            _put(table, key, value)
        if remedy.note and remedy.note not in notes.setdefault(remedy.file, []):
            notes[remedy.file].append(remedy.note)
    parts = []
    for file, table in files.items():
        lines = [f"# {_title(file)}"] if table else []
        lines += [f"# {note}" for note in notes.get(file, ())]
        body = tomli_w.dumps(table).strip()
        parts.append("\n".join([*lines, body] if body else lines))
    return "\n\n".join(parts) or None


def _title(file: str) -> str:
    return "agentao-gov.toml" if file == "deployment" else f"{file.removeprefix('profile ')}.toml (the profile)"


def _put(table: dict[str, Any], key: str | tuple[str, ...], value: Any) -> None:
    *path, leaf = key.split(".") if isinstance(key, str) else key
    for name in path:
        table = table.setdefault(name, {})
    table[leaf] = value
