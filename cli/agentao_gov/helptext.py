"""Prepared `--help` texts, so that help comes at once: Typer needs 0.2 s to say the same, on a busy machine a second.

`python -m agentao_gov.helptext` writes them anew. A text carries the fingerprint of the sources it was made from and
is used only while that fits, so that help is never out of date: at worst it is slow. A test holds that all fit.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent
_TEXTS = _PACKAGE / "help"
_WORD = re.compile(r"[a-z]+(-[a-z]+)*")
#: A command and a sub-command; nothing is deeper.
_DEPTH_MAX = 2


def prepared(args: list[str]) -> str | None:
    """The text of `[COMMAND [SUBCOMMAND]] --help`, or None where Typer has to make it."""
    *words, last = args or [""]
    if last not in {"--help", "-h"} or len(words) > _DEPTH_MAX or not all(map(_WORD.fullmatch, words)):
        return None
    try:
        fingerprint, _, text = (_TEXTS / _file_name(words)).read_text("utf-8").partition("\n")
        return text if fingerprint == _fingerprint(words) else None
    except OSError:
        return None


def _file_name(words: list[str]) -> str:
    return "-".join(["agentao-gov", *words]) + ".txt"


def _fingerprint(words: list[str]) -> str:
    """A hash of all that help is made of: signatures, decorators and docstrings, but not the code in between."""
    commands = _PACKAGE / "commands"
    own = [name for word in words[:1] for name in (f"{word}.py", f"_{word}_options.py")]
    sources = [path for name in ("_app.py", "_options.py", *own) if (path := commands / name).exists()]
    digest = hashlib.sha256()
    for source in sources:
        for node in ast.parse(source.read_bytes()).body:
            if isinstance(node, ast.FunctionDef):
                parts: list[ast.AST] = [node.args, *node.decorator_list]
                digest.update((ast.get_docstring(node) or "").encode())
            else:
                parts = [node] if isinstance(node, ast.Assign | ast.AnnAssign) else []
            digest.update("".join(map(ast.dump, parts)).encode())
    return digest.hexdigest()


def write_all() -> list[Path]:
    """Writes the texts of all commands and sub-commands; returns the files."""
    from agentao_gov.commands._app import COMMANDS, application

    group = application()
    root = group.make_context("agentao-gov", [], resilient_parsing=True)
    written = [_write([], group, root)]
    for name in COMMANDS:
        command = group.get_command(root, name)
        assert command is not None, f"{name} is listed in COMMANDS"
        context = command.make_context(name, [], parent=root, resilient_parsing=True)
        written.append(_write([name], command, context))
        for inner, sub in getattr(command, "commands", {}).items():
            below = sub.make_context(inner, [], parent=context, resilient_parsing=True)
            written.append(_write([name, inner], sub, below))
    for stale in set(_TEXTS.glob("*.txt")) - set(written):
        stale.unlink()
    return written


def _write(words: list[str], command: Any, context: Any) -> Path:
    _TEXTS.mkdir(exist_ok=True)
    path = _TEXTS / _file_name(words)
    # What Typer takes on a terminal of 80 columns and in a pipe.
    context.terminal_width = 78
    text = command.get_help(context)
    path.write_text(f"{_fingerprint(words)}\n{text}\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.stdout.write("".join(f"{path}\n" for path in write_all()))
