"""Puts a measured capacity plan into a deployment file, leaving every other line as it was."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentao_gov.config.load_deployment import FILE_NAME, find_deployment
from agentao_gov.errors import ConfigError

__all__ = ["merge_capacity", "write_capacity"]

_TABLE = re.compile(r"^\s*\[")


def write_capacity(config: Path | None, plan: Mapping[str, Any]) -> Path:
    """Merges the plan into `[capacity]` of the deployment file, or a new `agentao-gov.toml`; the path.

    Raises ConfigError when the file cannot be written.
    """
    path = find_deployment(config, os.environ) or Path(FILE_NAME)
    try:
        text = path.read_text() if path.exists() else ""
        _replace(path, merge_capacity(text, plan))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def merge_capacity(text: str, plan: Mapping[str, Any]) -> str:
    """The text with `[capacity]` holding the plan's values; comments and other keys stay."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.split("#")[0].strip() == "[capacity]"), None)
    if start is None:
        block = ["", "[capacity]", *(_line(key, value) for key, value in plan.items())]
        return "\n".join([*lines, *block]).lstrip("\n") + "\n"
    end = next((i for i in range(start + 1, len(lines)) if _TABLE.match(lines[i])), len(lines))
    table = lines[start + 1 : end]
    for key, value in plan.items():
        at = next((i for i, line in enumerate(table) if re.match(rf"\s*{key}\s*=", line)), None)
        if at is None:
            table.insert(0, _line(key, value))
        else:
            comment = table[at].partition("#")
            table[at] = _line(key, value) + (f"  #{comment[2]}" if comment[1] else "")
    return "\n".join([*lines[: start + 1], *table, *lines[end:]]) + "\n"


def _line(key: str, value: object) -> str:
    return f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a half-written deployment file would stop the service."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).chmod(mode)
    Path(name).replace(path)
