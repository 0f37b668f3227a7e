"""The checklist on a terminal and as text: progress per item, the table, and the formats for machines."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from agentao_gov.checklist.items import Item
from agentao_gov.checklist.report import ChecklistReport, ItemReport, gate_report
from agentao_gov.checklist.runner import Listener
from agentao_gov.report.gate import clean
from agentao_gov.report.terminal import STYLES, console

_STYLES = {"pass": STYLES["ok"], "fail": STYLES["bad"], "warn": STYLES["warn"], "skip": STYLES["dim"]}
_MARKS = {"pass": "✔", "fail": "✘", "warn": "!", "skip": "-"}
#: Evidence lines of one item on the terminal; JSON has them all.
_EVIDENCE_MAX = 12


class Progress(Listener):
    """One line per decided item on standard error, and below them what is being done now, a line an item."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = console(sys.stderr)
        self._live: Live | None = None
        #: Spinners of the items that are being tried, by id, with when each began.
        self._doing: dict[str, tuple[Spinner, float]] = {}

    def began(self, item: Item) -> None:
        self._show(item, "")

    def doing(self, item: Item, what: str) -> None:
        self._show(item, what)

    def ended(self, report: ItemReport) -> None:
        self._doing.pop(report.id, None)
        if not self._doing:
            self.close()
        elif self._live is not None:
            self._redraw()
        if self._quiet or report.status == "skip":
            return
        style = _STYLES[report.status]
        head = f"{_MARKS[report.status]} {report.number}. {report.title}"
        seconds = f"  {report.duration_ms / 1000:.1f} s"
        self._console.print(Text.assemble((head, style), (seconds, STYLES["dim"])))

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, item: Item, what: str) -> None:
        if self._quiet or not self._console.file.isatty():
            return
        if item.id not in self._doing:
            self._doing[item.id] = (Spinner("dots"), time.monotonic())
        spinner, began = self._doing[item.id]
        seconds = f"  {time.monotonic() - began:.0f} s"
        # One line each, however narrow the terminal: what is redrawn in place must not wrap.
        text = Text.assemble(f"{item.number}. {item.title}  ", (f"{what}{seconds}", STYLES["dim"]))
        text.truncate(max(10, self._console.width - 4), overflow="ellipsis")
        spinner.update(text=text)
        self._redraw()

    def _redraw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        self._live.update(Group(*(spinner for spinner, _ in self._doing.values())))


def print_checklist(report: ChecklistReport, stream: TextIO) -> None:
    """The table, then evidence and remedy of what does not hold, then the verdict."""
    out = console(stream)
    if stream.isatty():
        out.print(_table(report))
    else:
        for item in report.items:
            # Not through Rich, which makes spaces of tabs.
            stream.write(f"{item.status}\t{item.id}\t{item.title}\t{clean(item.summary)}\n")
    for item in report.items:
        if item.status in ("fail", "warn"):
            _print_details(item, stream)
    _print_scaled(report, stream)
    out.print()
    style = _STYLES[report.verdict]
    tail = f"{gate_report(report).headline.partition(': ')[2]}, {report.duration_ms / 1000:.0f} s, {report.config}"
    word = "nothing was tried" if report.tried_nothing else report.verdict.upper()
    out.print(Text.assemble((word, style), "  ", clean(tail)))


def _print_scaled(report: ChecklistReport, stream: TextIO) -> None:
    """Which limits were tried at another size than their own."""
    scaled = dict.fromkeys(f"{s.key} {s.configured} → {s.probed}" for item in report.items for s in item.scaled)
    if scaled:
        out = console(stream)
        out.print()
        out.print(Text(clean(f"scaled to be tried in time: {'; '.join(scaled)}"), style=STYLES["dim"]))


def _table(report: ChecklistReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style=STYLES["dim"])
    for header in ("", "item", "observed"):
        table.add_column(header, overflow="fold")
    for item in report.items:
        mark = Text(f"{_MARKS[item.status]} {item.status}", style=_STYLES[item.status])
        table.add_row(mark, Text(f"{item.number}. {item.title}"), Text(clean(item.summary), style=STYLES["dim"]))
    return table


def _print_details(item: ItemReport, stream: TextIO) -> None:
    out = console(stream)
    out.print()
    out.print(Text(f"{_MARKS[item.status]} {item.number}. {item.title} ({item.id})", style=_STYLES[item.status]))
    bad = _wrong_lines(item)
    for line in bad[:_EVIDENCE_MAX]:
        out.print(Text(f"{' ' * (len(line) - len(line.lstrip()) + 2)}{clean(line)}"))
    if len(bad) > _EVIDENCE_MAX:
        out.print(Text(f"  … {len(bad) - _EVIDENCE_MAX} more lines with --format json", style=STYLES["dim"]))
    if item.remedy:
        out.print(Text("  to mend it:", style=STYLES["strong"]))
        for line in item.remedy.splitlines():
            out.print(Text(f"    {line}"))


def _wrong_lines(item: ItemReport) -> list[str]:
    """The evidence of checks that do not hold, with the lines that belong to them."""
    kept: list[str] = []
    taking = False
    for line in item.evidence:
        if not line.startswith(" "):
            taking = not line.startswith("[pass]")
        if taking:
            kept.append(line)
    return kept


def rendered(report: ChecklistReport, form: str) -> str:
    """The report in a format for machines, or as the table without colour."""
    if form == "json":
        return report.to_json() + "\n"
    if form == "junit":
        from agentao_gov.report.gate_formats import junit_xml

        return junit_xml(gate_report(report))
    if form == "markdown":
        from agentao_gov.report.gate_formats import markdown

        return markdown(gate_report(report))
    if form == "github":
        from agentao_gov.report.gate_formats import github_annotations

        return github_annotations(gate_report(report))
    from io import StringIO

    text = StringIO()
    print_checklist(report, text)
    return text.getvalue()
