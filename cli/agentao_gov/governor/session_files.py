"""What agentao itself reads and writes in a session's directory, where a command may have left a link or a pipe.

agentao does this in the service's process, outside of every sandbox: a link named `AGENTAO.md` would put the service's
environment into the system prompt, one in place of `.agentao` would have it write into another tenant's directory, and
a pipe would hold its thread for ever. So nothing here follows a link out of the directory, or opens what is no file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agentao.agent
import agentao.runtime.tool_result_formatter
from agentao.memory import SQLiteMemoryStore
from agentao.prompts.helpers import strip_frontmatter

__all__ = ["follow_no_links", "is_plain", "memory_store", "project_instructions"]

#: As agentao takes: the first that exists.
_INSTRUCTIONS = ("AGENTAO.md", "AGENTS.md")
#: Instructions go into every call's prompt; a larger file is no such thing.
_INSTRUCTIONS_BYTES_MAX = 256 * 1024
_HELD = "/proc/self/fd/"


def project_instructions(workdir: Path) -> str:
    """The project's own instructions in `workdir`, without their header; empty where there are none to be had."""
    root = workdir.resolve()
    for name in _INSTRUCTIONS:
        place = (root / name).resolve()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if place.is_relative_to(root):
                fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                with os.fdopen(fd, "rb") as file:
                    found = os.fstat(fd)
                    if stat.S_ISREG(found.st_mode) and found.st_size <= _INSTRUCTIONS_BYTES_MAX:
                        return str(strip_frontmatter(file.read(_INSTRUCTIONS_BYTES_MAX).decode()))
    return ""


def is_plain(workdir: Path, *parts: str) -> bool:
    """Whether no name on the way from `workdir` is a link, and the last, if it exists, a directory or a file."""
    place = workdir
    for part in parts:
        place /= part
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return False
    return True


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[Path]:
    """The directory by a name that no link can change, made where it is missing: agentao's own, two steps below ours.

    Raises OSError where a step is a link.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory.parent.parent, flags)
    try:
        for name in (directory.parent.name, directory.name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
            above, fd = fd, os.open(name, flags, dir_fd=fd)
            os.close(above)
        yield Path(f"{_HELD}{fd}")
    finally:
        os.close(fd)


def memory_store(workdir: Path) -> Any:
    """The session's memory, which is used only while no link stands in its place."""
    parts = (".agentao", "memory.db")
    if not is_plain(workdir, *parts):
        return SQLiteMemoryStore.open_or_memory(":memory:")
    store = SQLiteMemoryStore.open_or_memory(workdir.joinpath(*parts))
    plain = store._connect

    def connect() -> Any:
        if not is_plain(workdir, *parts):
            raise sqlite3.OperationalError("the memory's file is a link")
        return plain()

    store._connect = connect  # type: ignore[method-assign]
    return store


def follow_no_links() -> None:
    """Has agentao read instructions, and save and prune large results, without following a link. Idempotent."""
    names = vars(agentao.runtime.tool_result_formatter)
    if names["_save_and_truncate"].__module__ == __name__:
        return
    plain_save, plain_prune = names["_save_and_truncate"], names["_prune_tool_outputs"]

    def save(
        content: str, tool_name: str, logger: Any = None, *, output_dir: Path | None = None, **more: Any
    ) -> tuple[str, str | None]:
        if output_dir is None:
            return plain_save(content, tool_name, logger, **more)  # type: ignore[no-any-return]
        try:
            with _held(output_dir) as held:
                excerpt, path = plain_save(content, tool_name, logger, output_dir=held, **more)
        except OSError:
            return plain_save(content, tool_name, logger, output_dir=Path(os.devnull), **more)  # type: ignore[no-any-return]
        there = str(output_dir)
        return excerpt.replace(str(held), there, 1), path.replace(str(held), there) if path else None

    def prune(out_dir: Path, logger: Any = None, **more: Any) -> int:
        with contextlib.suppress(OSError), _held(out_dir) as held:
            return int(plain_prune(held, logger, **more))
        return 0

    names["_save_and_truncate"], names["_prune_tool_outputs"] = save, prune
    vars(agentao.agent)["load_project_instructions"] = _load_instructions


def _load_instructions(working_directory: Path, logger: Any = None) -> str | None:  # noqa: ARG001
    return project_instructions(working_directory) or None
