"""`--output FILE`: looked at before anything is paid for, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from agentao_gov.config.edit import write_whole
from agentao_gov.errors import UsageError

__all__ = ["check_output", "write_output"]


def check_output(path: Path | None) -> None:
    """Raises UsageError for a file that cannot be written: a minute's work must not be lost to a typing error."""
    if path is None:
        return
    # A file is replaced as a whole, which takes its directory; a device or a pipe is written to.
    special = _is_special(path)
    place = path if special else path.resolve().parent
    if path.is_dir() or not (special or place.is_dir()) or not os.access(place, os.W_OK):
        raise UsageError(
            f"The output {str(path)!r} cannot be written.",
            hint="Name a file in a directory that exists and can be written.",
        )


def write_output(path: Path, text: str, *, new_mode: int = 0o600) -> None:
    """Replaces or makes the file; writes to a device or pipe, which a replacement would end. Raises OSError."""
    if _is_special(path):
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path.resolve(), text, new_mode=new_mode)


def _is_special(path: Path) -> bool:
    """Whether it is /dev/stderr, a named pipe or the like: of the path as given, for a pipe's link leads to no name."""
    return path.exists() and not path.is_file()
