"""A gate on the terminal: its progress while it runs, and one screen at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.text import Text

from agentao_gov.report.gate import GateCase, GateReport, clean
from agentao_gov.report.terminal import STYLES, console, print_table

#: (name, value, style word of STYLES)
Row = tuple[str, str, str]
_STATUS_STYLES = {
    "pass": "ok",
    "fail": "bad",
    "warn": "warn",
    "inconclusive": "warn",
    "interrupted": "warn",
    "skip": "dim",
}
#: Without a terminal a line every so often is enough: logs are read later.
_LINE_EVERY_S = 5.0


class GateScreen:
    """Notes, and one block of figures that is redrawn in place; a line now and then where there is no terminal."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._console = console(self._stream)
        self._quiet = quiet
        self._live: Live | None = None
        self._last_line = 0.0

    def note(self, text: str) -> None:
        """Prints one line that stays."""
        if not self._quiet:
            self._console.print(Text(clean(text), style=STYLES["dim"]))

    def show(self, title: str, rows: Sequence[Row]) -> None:
        """Draws the figures under a `title`, `rows` of name, value and style, over those before."""
        if self._quiet:
            return
        if self._stream.isatty():
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(_block(title, rows))
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            figures = "  ".join(f"{name} {value}" for name, value, _ in rows)
            self._stream.write(clean(f"{title}  {figures}") + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _block(title: str, rows: Sequence[Row]) -> Group:
    width = max((len(name) for name, _, _ in rows), default=0)
    lines = [Text(clean(title), style=STYLES["strong"])]
    for name, value, style in rows:
        line = Text(f"  {clean(name):<{width}}  ", style=STYLES["dim"])
        line.append(clean(value), style=STYLES.get(style, ""))
        lines.append(line)
    return Group(*lines)


def _finding(case: GateCase) -> str:
    """What was seen; beside what was expected where that says more than the title and the case is not green."""
    told = case.status in ("pass", "skip") or not case.beside_title
    return clean(case.observed if told else f"{case.observed}; expected {case.expected}")


def print_gate(report: GateReport, stream: TextIO, *, next_command: str = "") -> None:
    """The end screen: the cases, the facts, then the verdict and what to do next, where the eye is when it scrolls.

    `stream`: where to; `next_command`: the command that is worth running now.
    """
    out = console(stream)
    rows = [(case.status, clean(case.title), _finding(case)) for case in report.cases]
    print_table(out, ("", "what", "observed"), rows)
    out.print()
    print_table(out, ("", ""), [(clean(name), clean(value)) for name, value in report.facts])
    for note in report.notes:
        # What the verdict itself says need not be said twice.
        if note not in report.headline:
            out.print(Text(clean(note), style=STYLES["dim"]))
    out.print()
    style = STYLES[_STATUS_STYLES[report.conclusion]]
    # The word in capitals says it already.
    told = clean(report.headline).removeprefix(f"{report.conclusion}: ").removeprefix(f"{report.conclusion}ed: ")
    out.print(Text.assemble((report.conclusion.upper(), style), "  ", told))
    if next_command:
        out.print(Text.assemble(("next: ", STYLES["dim"]), next_command))
