"""`--baseline` and `loadtest compare`, with real runs: the same build passes, a model 30 % slower does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.compare import compare_reports, read_report
from agentao_gov.loadtest.render import render
from agentao_gov.simulator import start_simulator
from tests.loadtest.own import start_run

#: Long enough that the machine's own noise is small beside it.
MODEL_S = 2.5


def run(folder: Path, model_s: float, *flags: str) -> tuple[int, dict[str, Any]]:
    """A load test of a service whose model takes so long to begin; exit code and report."""
    script = {"default": {"first_token": f"{model_s}s", "text": "As ever."}}
    with start_simulator(script) as model:
        started = start_run(
            folder, "--model", "steady", "--base-url", model.base_url, "--api-key-env", "STEADY_KEY",
            "--rate", "6", "--duration", "25s", "--turns", "1", "--arrivals", "constant", "--report", "report",
            "--threshold", "answered_rate>=90%", *flags, STEADY_KEY="none", AGENTAO_GOV__LIMITS__TURN_TIMEOUT="30s",
        )  # fmt: skip
        code, report, error = started.end()
    assert code in (0, 1, 11), (report, error)
    return code, report


def compare(*args: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "agentao_gov.main", "loadtest", "compare", *args],
        capture_output=True, text=True, timeout=60, env=dict(os.environ),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_slower_model_is_a_regression_and_the_same_one_is_not(tmp_path: Path) -> None:
    """The baseline, the same again, and 30 % slower; then the two reports side by side."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    baseline = str(first / "report" / "report.json")

    run(first, MODEL_S)
    _, same = run(second, MODEL_S, "--baseline", baseline, "--max-regression", "20")
    code, slower = run(third, 1.3 * MODEL_S, "--baseline", baseline, "--max-regression", "20")

    statuses = {item["name"]: item["status"] for item in same["baseline"]["comparisons"]}
    assert set(statuses.values()) == {"pass"}, same["baseline"]
    assert {"turn_p50", "turn_p95", "first_token_p95", "unanswered"} <= set(statuses)
    found = {item["name"]: item for item in slower["baseline"]["comparisons"]}
    assert {found[name]["status"] for name in ("turn_p50", "turn_p95", "first_token_p95")} == {"fail"}, found
    assert 1.1 < found["first_token_p95"]["low"] < found["first_token_p95"]["high"] < 2
    assert slower["baseline"]["confidence"] == 0.95
    # A generator that a busy machine held up proves no latency: then it is inconclusive, and never a pass.
    assert code == (11 if slower["generator"]["bound"] else 1)
    assert "95 % interval" in (third / "report" / "report.html").read_text()

    assert compare(baseline, str(second / "report"), "--max-regression", "20")[0] == 0
    code, out, _ = compare(baseline, str(third / "report" / "report.json"), "--json")
    assert code == 1
    assert {item["name"] for item in json.loads(out)["comparisons"] if item["status"] == "fail"} >= {"turn_p50"}


@pytest.fixture
def report_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a report of made-up turns, changed as asked."""
    from agentao_gov.loadtest.options import LoadOptions
    from agentao_gov.loadtest.report import Findings, assemble
    from tests.loadtest.made import played

    execution = played(tenants=("acme",), profiles=("qa",), turns=300)
    report = assemble(LoadOptions(), execution.plan, (), execution, Findings(started_at=1_790_000_000.0))
    data = json.loads(render(report, "json"))

    def write(name: str, change: Callable[[dict[str, Any]], object] = lambda _data: None) -> Path:
        changed = json.loads(json.dumps(data))
        change(changed)
        path = tmp_path / name
        path.write_text(json.dumps(changed))
        return path

    return write


def test_a_whole_report_is_read_back_also_from_its_directory(report_file: Callable[..., Path]) -> None:
    """`--baseline DIR` is what people type."""
    path = report_file("report.json")

    assert read_report(path) == read_report(path.parent)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema="agentao-gov/loadtest/0"), "loadtest/0"),
        (lambda d: d.update(schema="agentao-gov/checklist/1"), "checklist/1"),
        (lambda d: d.pop("turns"), "turns"),
        (lambda d: d["turns"].update(attempted="many"), "turns.attempted"),
        (lambda d: d["histograms"].update(turn="bm90aGluZw=="), "histogram of turn"),
        (lambda d: d["histograms"].update(turn="!"), "histogram of turn"),
    ],
)
def test_a_baseline_that_cannot_be_read_says_why(
    report_file: Callable[..., Path], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """Another schema, a missing part, a broken histogram."""
    with pytest.raises(ConfigError, match=said):
        read_report(report_file("b.json", change))


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty, cut off, or something else: exit code 3 and one line."""
    path = tmp_path / "b.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"b\.json"):
        read_report(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["plan"].update(rate=7.0), "rate"),
        (lambda d: d["plan"].update(mix={"code": 1.0}), "mix"),
        (lambda d: d["environment"].update(cpus=96), "cpus"),
        (lambda d: d["environment"].update(python="3.99"), "python"),
    ],
)
def test_another_plan_or_machine_is_refused_unless_forced(
    report_file: Callable[..., Path], change: Callable[[dict[str, Any]], object], said: str
) -> None:
    """With what differs and what to do; forced, the report keeps the differences."""
    one, other = read_report(report_file("one.json")), read_report(report_file("other.json", change))

    with pytest.raises(ConfigError, match=said) as caught:
        compare_reports(one, other, allowance=0.05, force=False)
    assert "--force" in (caught.value.hint or "")

    comparisons, part = compare_reports(one, other, allowance=0.05, force=True)
    assert {comparison.status for comparison in comparisons} == {"pass"}
    assert said in part["differences"][0]
    assert (part["confidence"], part["resamples"]) == (0.95, 2000)
