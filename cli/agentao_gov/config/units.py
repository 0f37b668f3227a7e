"""Durations, token amounts and byte sizes: how people write them, and how files show them again."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"^\s*(\d[\d_]*(?:\.\d+)?)\s*(ms|s|m|h|d)?\s*$"
_TOKENS = r"^\s*(\d[\d_]*(?:\.\d+)?)\s*([kKmM])?\s*$"
_BYTES = r"^\s*(\d[\d_]*(?:\.\d+)?)\s*([kKMGT]i?B?|B)?\s*$"
_FACTOR = {"": 1, "k": 1000, "m": 1_000_000}


def parse_duration_s(value: object) -> float:
    """Seconds of `90s`, `5m`, `1.5h`, `7d`, `250ms` or a plain number of seconds.

    Raises ValueError with the ways to write it; a negative or infinite time is no time.
    """
    number, unit = _split(value, _DURATION, "a duration such as 90s, 5m, 1.5h or a number of seconds")
    return number * _SECONDS[unit or "s"]


def parse_tokens(value: object) -> int:
    """A token amount: `20000`, `20_000`, `20k`, `1.5m`. Raises ValueError."""
    number, unit = _split(value, _TOKENS, "a token amount such as 20000, 20k or 1.5m")
    tokens = number * _FACTOR[unit.lower()]
    if tokens != int(tokens):
        raise ValueError(f"{value!r} is not a whole number of tokens")
    return int(tokens)


def parse_bytes(value: object) -> int:
    """A size: `512MiB`, `5GiB`, `100MB` (powers of 1000), `64k` or a plain number of bytes. Raises ValueError."""
    number, unit = _split(value, _BYTES, "a size such as 512MiB, 5GiB or a number of bytes")
    letter = unit.rstrip("B").rstrip("i").upper()
    # A bare letter is binary, as in Docker and Kubernetes' Mi; only KB, MB, GB are powers of 1000.
    base = 1000 if unit.endswith("B") and "i" not in unit else 1024
    return int(number * base ** " KMGT".index(letter or " "))


def _split(value: object, pattern: str, wanted: str) -> tuple[float, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {wanted}")  # noqa: TRY004 - pydantic turns ValueErrors into findings
    if isinstance(value, int | float):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{value!r} is not {wanted}: it cannot be negative or endless")
        return float(value), ""
    if (match := re.match(pattern, value)) is None:
        raise ValueError(f"{value!r} is not {wanted}")
    return float(match[1].replace("_", "")), match[2] or ""


def format_duration(seconds: float) -> str:
    """The shortest exact way to write it: `90s`, `5m`, `1.5h` is `90m`, `0.25s`."""
    # A minute and a half is read as 90s more easily than as 1.5m, so only whole units above 2 minutes are used.
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    # Every digit, without an exponent: dumped settings are read again by session processes.
    digits = format(Decimal(repr(float(seconds))), "f")
    return f"{digits.removesuffix('.0')}s"


def format_bytes(size: int) -> str:
    """A size with a binary unit where it is exact: `512MiB`; else the plain number of bytes."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2), ("KiB", 1)):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def _schema(pattern: str, description: str, kind: str) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "anyOf": [{"type": kind, "minimum": 0}, {"type": "string", "pattern": pattern}],
            "description": description,
        }
    )


#: Seconds as a float in Python; `90s` in TOML and in dumps.
Duration = Annotated[
    float,
    BeforeValidator(parse_duration_s),
    PlainSerializer(format_duration, return_type=str),
    _schema(_DURATION, "90s, 5m, 1.5h or a number of seconds", "number"),
]
#: Tokens as an int; `20k` is understood.
Tokens = Annotated[int, BeforeValidator(parse_tokens), _schema(_TOKENS, "20000, 20k, 1.5m", "integer")]
#: Bytes as an int; `512MiB` in TOML and in dumps.
ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes),
    PlainSerializer(format_bytes, return_type=str),
    _schema(_BYTES, "512MiB, 5GiB or a number of bytes", "integer"),
]
