"""The report: checks make an item, items make a verdict, and every format tells the same."""

from __future__ import annotations

import json
import tomllib
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from agentao_gov.checklist.items import ITEMS
from agentao_gov.checklist.remedy import Remedy, render
from agentao_gov.checklist.report import (
    Check,
    ChecklistReport,
    ItemReport,
    Scaled,
    assemble,
    gate_report,
    json_schema,
    judge,
    skipped,
)
from agentao_gov.commands._checklist_view import rendered

GOOD = Check("pass", "it holds", "it does")
WARN = Check("warn", "it fits", "it hardly does", remedy=Remedy((("pool.session_ttl", "30m"),)))
BAD = Check("fail", "it <refuses>", "it | accepts", ("a\nline",), Remedy((("budget.session_daily_tokens", 1000),)))


def _report(*checks: Check, strict: bool = False) -> ChecklistReport:
    items: list[ItemReport] = [assemble(ITEMS[0], checks, duration_ms=12)]
    items += [skipped(item, "not asked for") for item in ITEMS[1:]]
    return ChecklistReport(
        verdict=judge(items, strict=strict), config="agentao-gov.toml", strict=strict, items=tuple(items)
    )


@pytest.mark.parametrize(
    ("checks", "strict", "status", "verdict"),
    [
        ((GOOD,), False, "pass", "pass"),
        ((GOOD, WARN), False, "warn", "pass"),
        ((GOOD, WARN), True, "warn", "fail"),
        ((GOOD, WARN, BAD), False, "fail", "fail"),
    ],
)
def test_the_worst_check_decides(checks: tuple[Check, ...], strict: bool, status: str, verdict: str) -> None:
    """And `--strict` makes a warning count."""
    report = _report(*checks, strict=strict)

    assert report.items[0].status == status
    assert (report.verdict, report.exit_code) == (verdict, 0 if verdict == "pass" else 1)


def test_a_walk_that_tried_nothing_is_not_green() -> None:
    """Skipping every item proves nothing: 11."""
    items = [skipped(item, "not asked for") for item in ITEMS]
    report = ChecklistReport(verdict=judge(items, strict=False), config="x", items=tuple(items))

    assert report.verdict == "fail"
    assert report.exit_code == 11


def test_the_json_fits_its_schema_and_the_contract() -> None:
    """Names that scripts rely on."""
    data = json.loads(_report(GOOD, BAD).to_json())

    jsonschema.validate(data, json_schema())
    assert data["schema"] == "agentao-gov/checklist/1"
    assert [item["id"] for item in data["items"]] == [item.id for item in ITEMS]
    wanted = {"id", "number", "title", "status", "expected", "observed", "evidence", "remedy", "duration_ms"}
    assert wanted <= set(data["items"][0])


def test_a_remedy_is_toml_that_can_be_pasted() -> None:
    """Settings of several checks make one table, names with dots stay whole."""
    text = render([Remedy((("pool.hibernate", True),)), Remedy(((("tenants", "a.b", "max_sessions"), 5),), "and more")])

    assert tomllib.loads(str(text)) == {"pool": {"hibernate": True}, "tenants": {"a.b": {"max_sessions": 5}}}
    assert "# and more" in str(text)


def test_nothing_to_mend_is_null() -> None:
    """Not an empty string."""
    assert _report(GOOD).items[0].remedy is None


def _junit(text: str) -> Any:
    return ElementTree.fromstring(text)


def test_junit_counts_what_failed_and_what_was_skipped() -> None:
    """Eight cases, one failure, seven skipped."""
    suite = _junit(rendered(_report(BAD), "junit")).find("testsuite")

    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("8", "1", "7")
    assert "it | accepts" in suite.find("testcase/failure").get("message")


def test_markdown_escapes_what_comes_from_outside() -> None:
    """A table cell cannot end its table."""
    text = rendered(_report(BAD), "markdown")

    assert "it \\| accepts" in text
    assert "&lt;refuses&gt;" in text


def test_github_annotates_what_failed_at_the_configuration_file() -> None:
    """One error line for the item, one for the verdict."""
    lines = rendered(_report(BAD), "github").splitlines()

    assert lines[0].startswith("::error title=1. A cap on concurrent sessions")
    assert "file=agentao-gov.toml" in lines[0]
    assert "%0A" in lines[0]
    assert len(lines) == 2


def test_scaled_values_are_shown_in_markdown() -> None:
    """The reader must know which limit was not tried at its own size."""
    item = assemble(ITEMS[4], [GOOD], scaled=[Scaled(key="pool.session_ttl", configured="30m", probed="2s")])
    report = ChecklistReport(verdict="pass", config="x", items=(item,))

    text = rendered(report, "markdown")

    assert "30m" in text
    assert gate_report(report).tables


def test_the_table_shows_evidence_and_remedy_of_what_failed() -> None:
    """And nothing of what passed but its count."""
    text = rendered(_report(GOOD, BAD), "table")

    assert "[fail] it <refuses>: it | accepts" in text
    assert "session_daily_tokens = 1000" in text
    assert "[pass]" not in text


def test_a_passed_item_is_one_line_in_a_table_and_whole_in_the_json() -> None:
    """A cell that holds thirty observations is read by nobody."""
    report = _report(*[Check("pass", f"limit {n} holds", f"it refused at {n}") for n in range(30)])

    assert "30 checks hold" in rendered(report, "markdown")
    assert "limit 7 holds" not in rendered(report, "markdown").split("\n## ")[0]
    assert "limit 7 holds" in rendered(report, "json")
