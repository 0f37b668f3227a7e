"""The one place that knows about colour: consoles, styles and plain tables.

Rich colours pipes when FORCE_COLOR or GITHUB_ACTIONS is set and keeps bold under NO_COLOR, so it is told outright.
JSON never comes through here: it is written to the stream itself.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

#: Every style by what it means.
STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red", "dim": "dim", "strong": "bold", "answer": ""}

_BAR_CELLS = 12
#: What moves the cursor, sets titles or writes the clipboard: all control characters but tab and line feed.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A model's, a tool's or a provider's text without what a terminal would obey. For terminals only: a file or a
    pipe gets the answer as it came."""
    return _CONTROL.sub("", text)


def is_styled(stream: TextIO) -> bool:
    """Whether to colour: on a terminal, or where FORCE_COLOR asks for it; never under NO_COLOR or TERM=dumb."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty() or bool(os.environ.get("FORCE_COLOR"))


def console(stream: TextIO | None = None) -> Console:
    """A console on a stream, standard error by default. Markup is off: brackets of users and models stay text."""
    stream = stream or sys.stderr
    styled = is_styled(stream)
    return Console(
        file=stream,
        color_system="auto" if styled else None,
        force_terminal=styled,
        no_color=not styled,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not stream.isatty(),
        legacy_windows=False,
    )


def print_table(out: Console, headers: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """A table: aligned columns without boxes; tab-separated lines where nobody looks at a terminal.

    `rows` have a cell for each of the `headers`, which are left out where all are empty; `title` stands above.
    """
    if not out.file.isatty():
        for row in (headers, *rows) if any(headers) else rows:
            out.file.write("\t".join(str(cell).replace("\n", " ") for cell in row) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style=STYLES["dim"], title=title or None, title_justify="left")
    table.show_header = any(headers)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    out.print(table)


def bar(used: float, limit: float | None, *, high: float = 0.8) -> Text:
    """A bar of how much of a limit is used, yellow from the share `high` on; a dotted one where nothing limits."""
    if not limit:
        return Text("·" * _BAR_CELLS, STYLES["dim"])
    share = min(1.0, used / limit)
    full = round(share * _BAR_CELLS)
    style = STYLES["ok"] if share < high else STYLES["warn"] if share < 1 else STYLES["bad"]
    return Text.assemble(("█" * full, style), ("░" * (_BAR_CELLS - full), STYLES["dim"]))


def warn(message: str) -> None:
    """One warning line on standard error."""
    console().print(Text.assemble(("warning: ", STYLES["warn"]), printable(message)))
