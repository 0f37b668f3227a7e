"""`agentao-gov init`: a deployment file and profiles to start from, commented."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them.")] = Path(),
) -> None:
    """Write agentao-gov.toml and profiles/, commented. Files that exist are left as they are."""
    from agentao_gov.config.edit import write_starter

    written, kept = write_starter(directory)
    for path in written:
        sys.stdout.write(f"wrote  {path}\n")
    for path in kept:
        sys.stdout.write(f"kept   {path} (exists)\n")
    there = "" if directory == Path() else f"cd {shlex.quote(str(directory))}, then "
    sys.stderr.write(f"Next: {there}agentao-gov config check, then agentao-gov checklist\n")
