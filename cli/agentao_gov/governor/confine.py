"""The file system the agent's tools see: the session's working directory and nothing else, symlinks resolved.

agentao contains writes but not reads: its `read_file` opens any path of the machine, in read-only mode too. This is
handed to agentao as its `filesystem` capability, so every file and search tool goes through it. It is on purpose not a
`LocalFileSystem`: for that class the search tool would run `git grep` or `rg` itself, and a `.git` that the model wrote
can point git at any other tree.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentao.capabilities import LocalFileSystem

from agentao_gov.governor.toollog import mark_denied

__all__ = ["ConfinedFileSystem", "OutsideError"]


class OutsideError(PermissionError):
    """A tool reached for a path outside the session's directory."""


class ConfinedFileSystem:
    """agentao's `FileSystem` protocol, confined to one directory. Stateless but for the root."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._inner = LocalFileSystem()

    def _inside(self, path: Path) -> Path:
        """The path with links resolved. Raises OutsideError where it leads out of the directory."""
        resolved = Path(path).resolve()
        if resolved != self._root and self._root not in resolved.parents:
            mark_denied()
            raise OutsideError(f"{path} is outside the working directory, which is all this session may read and write")
        return resolved

    def _holds(self, path: Path) -> bool:
        resolved = Path(path).resolve()
        return resolved == self._root or self._root in resolved.parents

    def read_bytes(self, path: Path) -> bytes:
        """The file's bytes."""
        data: bytes = self._inner.read_bytes(self._inside(path))
        return data

    def read_partial(self, path: Path, n: int) -> bytes:
        """Up to `n` bytes from the start."""
        data: bytes = self._inner.read_partial(self._inside(path), n)
        return data

    def open_text(self, path: Path) -> Iterator[str]:
        """The file's lines. Refuses before the first line, not at it."""
        lines: Iterator[str] = self._inner.open_text(self._inside(path))
        return lines

    def write_text(self, path: Path, data: str, *, append: bool = False) -> None:
        """Writes or appends."""
        self._inner.write_text(self._inside(path), data, append=append)

    def list_dir(self, path: Path) -> list[Any]:
        """A directory's entries; links that lead outside are left out."""
        base = self._inside(path)
        return [entry for entry in self._inner.list_dir(base) if self._holds(base / entry.name)]

    def glob(self, base: Path, pattern: str, *, recursive: bool) -> list[Path]:
        """Matches below `base`. A pattern with `..` finds nothing outside: matches that lead out are left out."""
        self._inside(base)
        return [found for found in self._inner.glob(base, pattern, recursive=recursive) if self._holds(found)]

    def stat(self, path: Path) -> Any:
        """Size, time and kind."""
        return self._inner.stat(self._inside(path))

    def exists(self, path: Path) -> bool:
        """Whether it exists within the directory."""
        return bool(self._inner.exists(self._inside(path)))

    def is_dir(self, path: Path) -> bool:
        """Whether it is a directory."""
        return bool(self._inner.is_dir(self._inside(path)))

    def is_file(self, path: Path) -> bool:
        """Whether it is a file."""
        return bool(self._inner.is_file(self._inside(path)))
