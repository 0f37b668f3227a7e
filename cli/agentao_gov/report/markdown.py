"""Writes a gate's result as Markdown, made for GitHub's step summary."""

from __future__ import annotations

import re

from agentao_gov.report.gate import GateCase, GateReport, GateTable, clean

__all__ = ["markdown"]

_MARKS = {"pass": "✅", "fail": "❌", "warn": "⚠️", "skip": "⏭️", "inconclusive": "❔", "interrupted": "⏹️"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>&@])")


def markdown(report: GateReport) -> str:
    """The report as Markdown with tables; ends with a newline."""
    lines = [f"## {_MARKS[report.conclusion]} {_text(report.name)}: {_text(report.headline)}", ""]
    if report.facts:
        lines += [f"- **{_text(name)}**: {_text(value)}" for name, value in report.facts] + [""]
    if report.cases:
        lines += ["|  | what | expected | observed |", "|---|---|---|---|"]
        lines += [_case_row(case) for case in report.cases] + [""]
    for case in report.cases:
        if case.status in ("fail", "warn", "inconclusive") and (case.evidence or case.remedy):
            lines += _details(case)
    for table in report.tables:
        lines += _table(table)
    lines += [f"> {_text(note)}\n" for note in report.notes]
    return "\n".join(lines).rstrip() + "\n"


def _case_row(case: GateCase) -> str:
    cells = (f"{_MARKS[case.status]} {case.status}", _text(case.title), _text(case.expected), _text(case.observed))
    return f"| {' | '.join(cells)} |"


def _details(case: GateCase) -> list[str]:
    lines = [f"<details><summary>{_text(case.title)}</summary>", ""]
    lines += [f"- {_text(line)}" for line in case.evidence]
    if case.remedy:
        lines += ["", *_code(clean(case.remedy, one_line=False))]
    return [*lines, "", "</details>", ""]


def _code(text: str) -> list[str]:
    """A block that nothing inside can end. Not by indentation: after a list that goes on with the list."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return [f"{fence}toml", *text.splitlines(), fence]


def _table(table: GateTable) -> list[str]:
    head = [f"### {_text(table.title)}", "", f"| {' | '.join(map(_text, table.columns))} |"]
    rows = [f"| {' | '.join(map(_text, row))} |" for row in table.rows]
    return [*head, "|" + "---|" * len(table.columns), *rows, ""]


def _text(value: object) -> str:
    """Plain text: nothing in it is read as Markdown or HTML, nor pings anyone."""
    return _SPECIAL.sub(r"\\\1", clean(value)).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")
