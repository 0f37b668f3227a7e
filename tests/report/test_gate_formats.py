"""The formats for machines: valid where there is a schema, rendered where there is none; no text breaks out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import xmlschema
from markdown_it import MarkdownIt

from agentao_gov.report.gate import CaseStatus, GateCase, GateReport, GateTable
from agentao_gov.report.gate_formats import github_annotations, junit_xml, markdown

SCHEMA = xmlschema.XMLSchema(Path(__file__).with_name("junit.xsd"))
#: What a tenant, a model or a file name may hold to break a report.
NASTY = 'a|b`c`<script>x</script>[l](http://x)\n\n::error::gotcha\n# h\x1b[31m\x00 100% @everyone ]]> & "q" \ud800'
CASES = tuple(
    GateCase(
        id=f"case_{status}",
        title=f"{n}. {NASTY}",
        status=status,
        expected=NASTY,
        observed=NASTY,
        evidence=(NASTY, "second line"),
        remedy=f"[tenants.x]\nmax_sessions = 5\n# {NASTY}",
        duration_ms=n,
        file="conf/a,b:c.toml",
        line=12,
    )
    for n, status in enumerate(get_args(CaseStatus))
)
REPORT = GateReport(
    name="checklist",
    headline=NASTY,
    conclusion="fail",
    cases=CASES,
    facts=(("configuration", NASTY),),
    tables=(GateTable(NASTY, ("key", "value"), ((NASTY, "1"),)),),
    notes=(NASTY,),
    duration_s=1.2345,
    properties={"config": NASTY},
)
EMPTY = GateReport(name="checklist", headline="nothing ran", conclusion="inconclusive", cases=())


@pytest.mark.parametrize("report", [REPORT, EMPTY], ids=["full", "empty"])
def test_junit_fits_the_schema(report: GateReport) -> None:
    """The strictest reading of JUnit in use: Jenkins refuses properties in a case and a count of skips at the root."""
    SCHEMA.validate(junit_xml(report))


def test_junit_says_what_was_skipped_what_failed_and_what_is_unknown() -> None:
    """Unknown is an error: it must not be green."""
    written: Any = SCHEMA.to_dict(junit_xml(REPORT))
    (suite,) = written["testsuite"]

    assert (suite["@tests"], suite["@failures"], suite["@errors"], suite["@skipped"]) == (5, 1, 1, 1)
    assert suite["testcase"][1]["@classname"] == "agentao-gov.checklist.case_fail"


def test_markdown_renders_as_tables_lists_and_code() -> None:
    """As GitHub's step summary would: rendered, not only looked at as text."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(REPORT))

    cases = re.search(r"<table>.*?</table>", html, re.DOTALL)
    assert cases is not None
    rows = re.findall(r"<tr>(.*?)</tr>", cases[0], re.DOTALL)
    assert [len(re.findall("<t[hd]", row)) for row in rows] == [4] * 6
    assert html.count("<details>") == html.count("</details>") == 3
    assert html.count("<pre><code") == 3
    assert "max_sessions = 5" in html


def test_nothing_from_outside_is_read_as_markdown_or_html() -> None:
    """No script, no link, no heading, no mention."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(REPORT))

    assert "<script>" not in html
    assert "<a " not in html
    assert "<h1>" not in html
    assert "\x1b" not in html
    assert "\x00" not in html


def test_annotations_are_one_line_each_with_file_and_line() -> None:
    """GitHub trims a line before it looks for `::`, so no text may begin one."""
    lines = github_annotations(REPORT).splitlines()

    assert len(lines) == 4
    assert [line.split(" ", 1)[0] for line in lines] == ["::error", "::warning", "::error", "::error"]
    assert all("file=conf/a%2Cb%3Ac.toml,line=12::" in line for line in lines[:3])
    assert all("100%25" in line for line in lines)
    assert all("%0A" in line for line in lines[:3])
