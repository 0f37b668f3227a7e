"""Reads TOML files with errors people can act on, and finds the line a key stands on.

`tomllib` forgets lines, and a message about a wrong key without its line sends people searching.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from agentao_gov.errors import ConfigError

_HEADER = re.compile(r"^\s*\[\[?\s*(?P<path>[^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(
    r"""^\s*(?P<path>(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
#: A name with letters beyond ASCII outside of quotes, which TOML does not know.
_BARE_NON_ASCII = re.compile(r"""^[^"'#=]*[^\x00-\x7f"'#=]""")
#: Tables and keys whose values no message repeats.
_MAY_BE_SECRET = re.compile(r"key|token|secret|passw|auth|url|store|args|env|headers", re.IGNORECASE)
_SHOWN_CHARS_MAX = 100
# A configuration file is a few kilobytes; a device or a model file given by mistake is not read to its end.
_SIZE_MAX = 1024**2


def read_toml(path: Path, *, what: str) -> tuple[dict[str, Any], str]:
    """The parsed file and its text. Raises ConfigError saying what is wrong with which file."""
    try:
        with path.open("rb") as file:
            raw = file.read(_SIZE_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"The {what} {str(path)!r} does not exist.", hint=_create_hint(what)) from None
    except IsADirectoryError:
        raise ConfigError(f"The {what} {str(path)!r} is a directory, not a TOML file.") from None
    except OSError as error:
        raise ConfigError(f"The {what} {str(path)!r} cannot be read: {error.strerror or error}.") from None
    if len(raw) > _SIZE_MAX:
        raise ConfigError(f"The {what} {str(path)!r} is larger than 1 MiB; this is not a configuration file.")
    try:
        # Editors on Windows put a byte-order mark in front, which TOML does not know.
        text = raw.decode("utf-8-sig")
        return tomllib.loads(text), text
    except UnicodeDecodeError:
        raise ConfigError(f"The {what} {str(path)!r} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The {what} {str(path)!r} is not valid TOML: {error}.{_line_shown(text, error)}") from None


def _line_shown(text: str, error: tomllib.TOMLDecodeError) -> str:
    """The line with the mistake, for below the message; without its value where that may be a secret."""
    at = re.search(r"at line (\d+), column", str(error))
    lines = text.splitlines()
    if at is None or int(at[1]) > len(lines) or not lines[int(at[1]) - 1].strip():
        return ""
    number = int(at[1])
    line = lines[number - 1].rstrip()
    tables = [header["path"] for earlier in lines[: number - 1] if (header := _HEADER.match(earlier))]
    name, equals, _ = line.partition("=")
    if equals and _MAY_BE_SECRET.search(f"{tables[-1] if tables else ''}.{name}"):
        line = f"{name}= …"
    advice = "\n  A name with other letters than A-Z, a-z goes in quotes." if _BARE_NON_ASCII.match(line) else ""
    return f"\n  {number} | {line[:_SHOWN_CHARS_MAX]}{advice}"


def _create_hint(what: str) -> str:
    return "`agentao-gov profile list` shows the profiles." if what == "profile" else "`agentao-gov init` writes one."


def key_lines(text: str) -> dict[str, int]:
    """Line of every table header and key, by dotted path; the first one of each."""
    lines: dict[str, int] = {}
    table: tuple[str, ...] = ()
    closing: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if closing is not None:
            closing = None if closing in line else closing
            continue
        if header := _HEADER.match(line):
            table = _parts(header["path"])
            lines.setdefault(".".join(table), number)
        elif key := _KEY.match(line):
            lines.setdefault(".".join((*table, *_parts(key["path"]))), number)
            closing = _unclosed(line[key.end() :])
    return lines


def key_line(text: str, key: str) -> int | None:
    """The line of a dotted key, of the first key inside it, or of the nearest table that holds it."""
    lines = key_lines(text)
    if key not in lines and (inside := [line for name, line in lines.items() if name.startswith(key + ".")]):
        return min(inside)
    while key:
        if key in lines:
            return lines[key]
        key = key.rpartition(".")[0]
    return None


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(path))


def _unclosed(value: str) -> str | None:
    """What ends a value that goes on in the next lines: only multi-line strings can hide `key =` lines."""
    for quotes in ('"""', "'''"):
        if value.lstrip().startswith(quotes) and quotes not in value.lstrip()[3:]:
            return quotes
    return None
