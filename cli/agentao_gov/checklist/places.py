"""Where in the configuration an item's trouble is: the file and line that its first remedy is about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, Place
from agentao_gov.config.toml_text import key_line

__all__ = ["place_of", "shown_path"]

_BAD = ("fail", "warn")


def shown_path(path: Path) -> str:
    """As people and CI systems name it: below the current directory where it is there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def place_of(checks: Iterable[Check], facts: Facts) -> Place | None:
    """The first remedy's file, with the line of its key or of the table the key belongs into."""
    bad = sorted((check for check in checks if check.status in _BAD), key=lambda check: _BAD.index(check.status))
    for check in bad:
        if check.remedy is not None and (path := _file(check.remedy, facts)) is not None:
            return Place(file=shown_path(path), line=_line(check.remedy, path))
    return Place(file=shown_path(facts.path)) if bad and facts.path is not None else None


def _file(remedy: Remedy, facts: Facts) -> Path | None:
    if remedy.file == "deployment":
        return facts.path
    name = remedy.file.removeprefix("profile ")
    return next((resolved.path for resolved in facts.profiles if resolved.profile.name == name), None)


def _line(remedy: Remedy, path: Path) -> int | None:
    if not remedy.settings:
        return None
    key, _ = remedy.settings[0]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return key_line(text, key if isinstance(key, str) else ".".join(key))
