"""Known models: their windows and how much of a window to use. The table is data, `models.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["KnownModel", "context_cap", "known_model"]

#: The summariser needs room for its own prompt and answer: a fifth of the window stays free.
_USABLE_PERCENT = 80


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the table. Tokens."""

    patterns: tuple[str, ...]
    model_class: str
    #: None: the provider states none that we know of.
    window: int | None
    recommended_min: int
    recommended_max: int
    #: The most that one answer may be; None: what the profile says.
    output_max: int | None = None


def context_cap(window: int) -> int:
    """The most that `max_context_tokens` may be in a window of this size."""
    return window * _USABLE_PERCENT // 100


def known_model(name: str) -> KnownModel | None:
    """The first row that matches, ignoring case and a provider prefix."""
    plain = name.rpartition("/")[2].lower()
    return next((row for row in _table() if any(fnmatchcase(plain, pattern) for pattern in row.patterns)), None)


@cache
def _table() -> tuple[KnownModel, ...]:
    with (Path(__file__).parent / "models.toml").open("rb") as file:
        rows = tomllib.load(file)["models"]
    return tuple(_row(row) for row in rows)


def _row(row: dict[str, Any]) -> KnownModel:
    least, most = row["recommended"]
    return KnownModel(tuple(row["match"]), row["class"], row.get("window"), least, most, row.get("output"))
