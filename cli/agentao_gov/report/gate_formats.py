"""Writes a gate's result for machines and pages: JUnit XML, GitHub workflow annotations, Markdown.

There is no standard for JUnit XML. What Jenkins validates is the strictest reading in use (no properties in a test
case, no count of skipped cases at the root); `tests/report/junit.xsd` holds the report to it.
"""

from __future__ import annotations

import re
from typing import cast

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from agentao_gov.report.gate import GateCase, GateReport, GateTable, clean

_LEVELS = {"fail": "error", "inconclusive": "error", "warn": "warning"}
_MARKS = {"pass": "✅", "fail": "❌", "warn": "⚠️", "skip": "⏭️", "inconclusive": "❔", "interrupted": "⏹️"}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~<>&@])")


def junit_xml(report: GateReport) -> str:
    """The report as JUnit XML.

    A case that is inconclusive is an *error*: CI must not show it green. A warning passes and says so in `system-out`.
    """
    suite = TestSuite(clean(report.name))
    for name, value in report.properties.items():
        suite.add_property(clean(name), clean(value))
    for case in report.cases:
        suite.add_testcase(_test_case(report.name, case))
    if not report.cases and report.conclusion != "pass":
        # A suite without cases counts as green in most CI systems.
        suite.add_testcase(_test_case(report.name, GateCase("run", report.headline, "inconclusive")))
    suite.update_statistics()  # type: ignore[no-untyped-call]
    xml = JUnitXml()
    xml.add_testsuite(suite)
    xml.update_statistics()  # type: ignore[no-untyped-call]
    # Not the sum of the cases: a load test's thresholds take no time, the load does.
    suite.time = xml.time = round(report.duration_s, 3)
    # Jenkins's schema knows this count for a suite only.
    xml._elem.attrib.pop("skipped", None)
    body = cast("bytes", xml.tostring())  # type: ignore[no-untyped-call]
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body.decode()}\n'


def _test_case(suite: str, case: GateCase) -> TestCase:
    name = clean(f"agentao-gov.{suite}.{case.id}")
    test = TestCase(clean(case.title), classname=name, time=case.duration_ms / 1000)
    summary = clean(f"expected {case.expected}; observed {case.observed}")
    detail = clean("\n".join((*case.evidence, case.remedy)).strip(), one_line=False)
    if case.status == "fail":
        test.result = [_with_text(Failure(summary, "fail"), detail)]
    elif case.status == "inconclusive":
        test.result = [_with_text(Error(summary, "inconclusive"), detail)]
    elif case.status == "skip":
        test.result = [Skipped(clean(case.observed or "skipped"))]
    else:
        test.system_out = f"{case.status}: {summary}\n{detail}".strip()
    return test


def _with_text(result: Failure | Error, text: str) -> Failure | Error:
    result.text = text
    return result


def github_annotations(report: GateReport) -> str:
    """One annotation for each case that is not green, then one notice with the verdict."""
    lines = [_annotation(_LEVELS[case.status], case) for case in report.cases if case.status in _LEVELS]
    level = "notice" if report.conclusion == "pass" else "error"
    lines.append(f"::{level} title={_property(f'agentao-gov {report.name}')}::{_message(report.headline)}")
    return "\n".join(lines) + "\n"


def _annotation(level: str, case: GateCase) -> str:
    where = [f"title={_property(case.title)}"]
    if case.file:
        where.append(f"file={_property(case.file)}")
        if case.line:
            where.append(f"line={case.line}")
    message = f"expected {case.expected}; observed {case.observed}"
    if case.remedy:
        message += f"\n{case.remedy}"
    return f"::{level} {','.join(where)}::{_message(message)}"


def _message(text: str) -> str:
    # GitHub's own escapes; without them a tenant's name could issue workflow commands.
    return clean(text, one_line=False).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(clean(text)).replace(":", "%3A").replace(",", "%2C")


def markdown(report: GateReport) -> str:
    """The report as Markdown with tables, made for GitHub's step summary; ends with a newline."""
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
    cells = (f"{_MARKS[case.status]} {case.status}", _text(case.title), _text(case.beside_title), _text(case.observed))
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
