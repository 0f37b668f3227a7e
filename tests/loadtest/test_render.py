"""All formats tell the same numbers, and nothing a tenant or a model wrote gets out of its place."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest

from agentao_gov.loadtest.document import LoadTestReport, schema
from agentao_gov.loadtest.execution import Execution
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.render import gate_report, page, render, write_reports
from agentao_gov.loadtest.report import Findings, assemble
from agentao_gov.loadtest.thresholds import parse_threshold
from agentao_gov.report.gate import GateCase, GateReport, GateTable
from agentao_gov.report.html import Chart, ChartLine, ChartMark, Page, html_page, svg, ticks
from tests.loadtest.made import played

NASTY = "</td><script>alert(1)</script> \x1b[31m|`x`\u2028::error::[bold] %0A @everyone"


@pytest.fixture
def report() -> LoadTestReport:
    """A run of 300 made-up turns of two profiles and two tenants, one of them with a nasty name."""
    execution: Execution = played(tenants=("acme", NASTY), profiles=("qa", "code"), turns=300)
    thresholds = [
        parse_threshold(text) for text in ("turn_p95<2s", "turn_p99<1ms", "memory_peak<1GiB", "error_rate<50%")
    ]
    return assemble(LoadOptions(), execution.plan, thresholds, execution, Findings(started_at=1_790_000_000.0))


def test_the_json_follows_its_published_schema(report: LoadTestReport) -> None:
    """And carries the contract's fields."""
    data = json.loads(render(report, "json"))

    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(data, schema())
    assert data["schema"] == "agentao-gov/loadtest/1"
    assert data["verdict"] == "fail"
    assert {t["expression"]: t["status"] for t in data["thresholds"]} == {
        "turn_p95<2s": "pass", "turn_p99<1ms": "fail", "memory_peak<1GiB": "inconclusive", "error_rate<50%": "pass",
    }  # fmt: skip


def test_the_books_balance_in_every_group(report: LoadTestReport) -> None:
    """Per profile and per tenant, and the groups add up to the whole."""
    for groups in (report.by_profile, report.by_tenant):
        for group in groups.values():
            t = group.turns
            assert t.attempted == t.answered + t.failed + t.timed_out + t.cancelled + t.unfinished
        assert sum(group.turns.attempted for group in groups.values()) == report.turns.attempted


def test_every_format_tells_the_same_numbers(report: LoadTestReport, tmp_path: Path) -> None:
    """Attempted, answered, and p95 as text."""
    write_reports(report, tmp_path)
    books = next(case.observed for case in gate_report(report).cases if case.id == "conservation")

    assert f"{report.turns.answered} answered" in books
    assert books in (tmp_path / "report.html").read_text()
    assert books in (tmp_path / "summary.md").read_text()
    assert books in (tmp_path / "junit.xml").read_text()
    suite = ET.parse(tmp_path / "junit.xml").getroot()
    assert (int(suite.get("failures", 0)), int(suite.get("errors", 0))) == (1, 1)


def test_nasty_text_stays_text(report: LoadTestReport) -> None:
    """No element, no control character, no workflow command, no broken table."""
    page_text, text, xml, github = (
        html_page(page(report)),
        *(render(report, f) for f in ("markdown", "junit", "github")),
    )

    assert "<script" not in page_text
    assert "\x1b" not in page_text + text + xml + github
    assert html.escape("<script>") in page_text
    assert "<script" not in text
    ET.fromstring(xml.split("?>", 1)[1])
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in github.splitlines())
    rows = [line for line in text.splitlines() if "alert" in line]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 9 for row in rows)


def test_annotations_cannot_be_forged() -> None:
    """A newline in a text would begin a command of its own."""
    case = GateCase("x", "a:b,c", "fail", "1", "2\n::error::forged", remedy="line\nline")
    report = GateReport("loadtest", "bad", "fail", (case,))

    from agentao_gov.report.gate_formats import github_annotations

    lines = github_annotations(report).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("::error title=a%3Ab%2Cc::expected 1; observed 2%0A")


def test_a_gate_without_cases_is_not_green_in_junit() -> None:
    """CI systems call an empty suite a success."""
    from agentao_gov.report.gate_formats import junit_xml

    suite = ET.fromstring(junit_xml(GateReport("loadtest", "nothing ran", "interrupted", ())).split("?>", 1)[1])

    assert suite.get("errors") == "1"


def test_the_page_needs_nothing_from_elsewhere(report: LoadTestReport) -> None:
    """No script, no link to load, and a policy that forbids both."""
    text = html_page(page(report))

    assert not re.search(r'(?:src|href)="(?!data:,)', text)
    assert "url(" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(
    "lines",
    [(), (ChartLine("empty", ()),), (ChartLine("one", ((1.0, 1.0),)),), (ChartLine("flat", ((0.0, 0.0), (1.0, 0.0))),),
     (ChartLine("odd", ((0.0, float("inf")), (1.0, float("nan")), (2.0, 1.0))),)],
)  # fmt: skip
def test_charts_of_little_are_still_charts(lines: tuple[ChartLine, ...]) -> None:
    """Nothing divides by a span of zero, and what is not a number is not drawn."""
    drawn = svg(Chart("t", "x", "y", lines, (ChartMark(0.5, 0.5, NASTY),)))

    ET.fromstring(drawn)
    assert "nan" not in drawn
    assert "inf" not in drawn.replace("info", "")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0, 0.003), (0, 987_654), (3, 4), (-5, 5)])
def test_ticks_cover_the_range_with_few_round_values(low: float, high: float) -> None:
    """Between two and eight of them."""
    values = ticks(low, high)

    assert values[0] <= low
    assert values[-1] >= high
    assert 2 <= len(values) <= 8


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(60)
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a headless Chromium")
def test_the_page_opens_in_a_real_browser_without_a_word(report: LoadTestReport, tmp_path: Path) -> None:
    """No console message, no request, and the charts are there."""
    path = tmp_path / "report.html"
    path.write_text(html_page(page(report)))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        f"--user-data-dir={tmp_path}/p",
    ]

    done = subprocess.run(
        ["chromium", *flags, "--proxy-server=127.0.0.1:9", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=50, check=True,
    )  # fmt: skip

    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('role="img"') == len(page(report).sections) > 2


def test_tables_stand_behind_charts(report: LoadTestReport) -> None:
    """Whoever cannot see a chart can read it."""
    made = page(report)
    text = html_page(made)

    assert text.count("<summary>table</summary>") == len(made.sections)
    assert all(section.rows for section in made.sections)


def test_a_page_of_another_gate_can_be_made() -> None:
    """The checklist uses the same writer."""
    gate = GateReport(
        "checklist", "fine", "pass", (GateCase("a", "A", "pass"),), tables=(GateTable("T", ("c",), (("v",),)),)
    )

    assert "fine" in html_page(Page("Checklist", gate, "now"))


def test_a_late_generator_that_passes_says_why(report: LoadTestReport) -> None:
    """23 ms late where 10 are allowed looks like a contradiction, unless chance is named."""
    generator = {**report.generator, "by_chance": ["p99"], "bound": None}

    cases = gate_report(report.model_copy(update={"generator": generator})).cases

    case = next(case for case in cases if case.id == "generator")
    assert case.status == "pass"
    assert "p99 1.0 ms (at most 63.5 ms); p99 within chance, with 300 turns" in case.observed


def test_a_threshold_is_told_once_and_the_page_says_what_was_loaded(report: LoadTestReport) -> None:
    """Its title is its condition; target, model, mix and versions stand above it."""
    summary = render(report, "markdown")

    row = next(line for line in summary.splitlines() if "turn\\_p95&lt;2s" in line)
    assert row.count("turn\\_p95&lt;2s") == 1
    assert all(f"**{name}**" in summary for name in ("target", "model", "mix", "versions"))
