"""How a command that failed says so: one message on standard error, or one JSON object with `--json`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from agentao_gov.errors import GovError, InternalError


def wants_json(args: list[str]) -> bool:
    """Whether the command line asks for JSON; looked up before parsing, because parsing may be what fails."""
    options = args[: args.index("--")] if "--" in args else args
    return "--json" in options or "--format=json" in options or ("--format", "json") in pairwise(options)


def report_gov_error(error: GovError, as_json: bool) -> int:
    """Shows an error of ours; returns its exit code."""
    _show(error.code, error.message, error.hint, as_json)
    return error.exit_code


def report_usage(error: Any, as_json: bool) -> int:
    """Shows what is wrong with flags or arguments; returns 2, or 0 where help was asked for."""
    context = getattr(error, "ctx", None)
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(message + "\n")
        return 2
    hint = f"See {context.command_path} --help." if context is not None else None
    if context is not None and context.info_name == "run" and "unexpected extra argument" in message:
        hint = "A prompt of several words goes in quotes: agentao-gov run 'one two'."
    _show("usage", message, hint, as_json)
    return 2


def report_unexpected(error: BaseException, as_json: bool) -> int:
    """Writes the traceback of what should not happen to a private file and says where; returns 10."""
    place = _write_traceback(error)
    message = f"Internal error: {type(error).__name__}: {_one_line(str(error))}"
    hint = f"The traceback is in {place}." if place else "The traceback could not be written to a file."
    with contextlib.suppress(OSError):
        _show(InternalError.ending.code, message, hint, as_json)
    return InternalError.ending.exit_code


def _show(code: str, message: str, hint: str | None, as_json: bool) -> None:
    if as_json:
        record = {"error": {"code": code, "message": message, "hint": hint}}
        try:
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
            # Only now is it known whether there was room for it.
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError:
            as_json = False  # A full disk, for one. Standard error may still be read.
    if as_json:
        return
    sys.stderr.write(f"agentao-gov: {message}\n")
    if hint:
        sys.stderr.write(f"  {hint}\n")


def _write_traceback(error: BaseException) -> Path | None:
    text = "".join(traceback.format_exception(error))
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for directory in _crash_directories():
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            # O_EXCL: in a shared temporary directory nobody else may have laid a link under this name.
            file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError:
            continue
        with os.fdopen(file, "w") as out:
            out.write(text)
        return directory / name
    return None


def _crash_directories() -> Iterator[Path]:
    """Where a traceback may go: the state directory, then a temporary one, if there is any that can be written."""
    with contextlib.suppress(RuntimeError):  # No home for the `~`.
        if state := os.environ.get("AGENTAO_GOV_STATE"):
            yield Path(state).expanduser()
    with contextlib.suppress(OSError):
        yield Path(tempfile.gettempdir())


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:297] + "…"
