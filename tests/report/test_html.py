"""The page of a load test in a real browser: no network, no word on the console, readable wide, narrow and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.render import page, render
from agentao_gov.loadtest.report import Findings, assemble
from agentao_gov.loadtest.thresholds import parse_threshold
from agentao_gov.report.gate import GateReport
from agentao_gov.report.html import Chart, ChartLine, ChartMark, Page, Section, Tile, html_page, svg
from tests.loadtest.made import played

NASTY = "</td><script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31m\u202e\u2028{{ 7*7 }}"
FAULT = {
    "kind": "hang", "at_s": 9.0, "for_s": 4.0, "played": True, "done": "the model: hang", "turns_met": 4,
    "outcomes": {"turn_timeout": 4}, "recovery_s": 1.2, "left_behind": {"fds": 0, "children": None},
}  # fmt: skip


def report(turns: int, *, tenants: tuple[str, ...] = ("acme", "globex"), faults: int = 0) -> LoadTestReport:
    execution = played(tenants=tenants, profiles=("qa", "code"), turns=turns)
    thresholds = [parse_threshold(text) for text in ("turn_p95<2s", "turn_p99<1ms", "memory_peak<1GiB")]
    findings = Findings(started_at=1_790_000_000.0)
    findings.faults = [{**FAULT, "at_s": 5.0 + 6 * n} for n in range(faults)]
    return assemble(LoadOptions(), execution.plan, thresholds, execution, findings)


@pytest.mark.parametrize("turns", [0, 1, 60])
def test_a_run_of_little_or_nothing_has_its_page(turns: int) -> None:
    """No turn, one turn: a page with all its parts, and nowhere a number that is none."""
    made = report(turns)

    text = html_page(page(made))

    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert "Traceback" not in text
    assert f"of {turns:,} turn" in text
    assert made.conclusion in text


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_hundred_thousand_turns_stay_a_small_page() -> None:
    """Charts and tables are thinned: the page is read, not mined."""
    made = report(100_000)

    assert len(html_page(page(made))) < 400_000
    assert len(render(made, "markdown")) < 65_000  # GitHub takes a megabyte, people a screen or two
    assert len(render(made, "json")) < 1_500_000


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_many_tenants_stay_a_page() -> None:
    """300 tenants: rows, not megabytes."""
    assert len(html_page(page(report(3000, tenants=tuple(f"tenant-{n}" for n in range(300)))))) < 600_000


def test_whatever_a_name_holds_stays_text() -> None:
    """In tiles, charts, marks, tables and headlines."""
    gate = GateReport("loadtest", NASTY, "fail", (), facts=((NASTY, NASTY),), notes=(NASTY,))
    chart = Chart(NASTY, NASTY, NASTY, (ChartLine(NASTY, ((0.0, 1.0), (1.0, 2.0))),), (ChartMark(0.2, 0.4, NASTY),))
    many = Chart(NASTY, "x", "y", (), tuple(ChartMark(float(n), float(n), NASTY) for n in range(5)), x_names=(NASTY,))

    text = html_page(Page(NASTY, gate, NASTY, (Tile(NASTY, NASTY, NASTY),), (Section(chart), Section(many))))

    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "49" not in re.findall(r"\{\{.*?\}\}", text)


def test_many_marks_are_numbered_and_named_below() -> None:
    """Ten names on one chart would stand over each other."""
    few, many = (html_page(page(report(60, faults=n))) for n in (2, 10))

    assert ">hang</text>" in few
    assert ">hang</text>" not in many
    assert "10 hang" in many


def test_a_single_point_is_seen() -> None:
    """A line of one point has no length."""
    assert "<circle" in svg(Chart("t", "x", "y", (ChartLine("one", ((1.0, 1.0),)),)))


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Opens a page in a headless Chromium that reaches no network."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs a headless Chromium")

    def run(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path}/p"]
        offline = ["--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--v=0"]
        return subprocess.run(
            [chromium, *common, *offline, *flags, path.as_uri()], capture_output=True, text=True, timeout=50, check=True
        )

    return run


#: Written into a copy of the page: the widest thing on it, told through the title. The real page runs no script.
PROBE = """<script>addEventListener("load", () => {
  const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".wide, svg")
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
  const ink = getComputedStyle(document.body);
  document.title = JSON.stringify({over: document.documentElement.scrollWidth - innerWidth, wide,
    ink: ink.color, paper: ink.backgroundColor});
})</script>"""


def probed(text: str) -> str:
    return text.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'") + PROBE


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(120)
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_nothing_sticks_out_at_any_width(
    tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]], width: int
) -> None:
    """A phone, a window, a screen; also with a tenant's name of 120 letters."""
    path = tmp_path / "report.html"
    path.write_text(probed(html_page(page(report(300, tenants=("a" * 120, "b"), faults=5)))))

    done = browse(path, f"--window-size={width},900", "--dump-dom")

    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    assert '"over":0' in title[1].replace("&quot;", '"'), title[1]
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(120)
def test_the_page_follows_the_reader_s_light(
    tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Dark where the reader asks for dark: other ink, other paper."""
    path = tmp_path / "report.html"
    path.write_text(probed(html_page(page(report(60)))))

    light = browse(path, "--dump-dom", "--blink-settings=preferredColorScheme=1").stdout
    dark = browse(path, "--dump-dom", "--blink-settings=preferredColorScheme=0").stdout

    assert "rgb(255, 255, 255)" in light
    assert "rgb(13, 17, 23)" in dark


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(120)
def test_the_page_prints(tmp_path: Path, browse: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A PDF of a few pages, in light even for those who read in the dark."""
    path, paper = tmp_path / "report.html", tmp_path / "report.pdf"
    path.write_text(html_page(page(report(300, faults=5))))

    browse(path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", "--blink-settings=preferredColorScheme=0")

    data = paper.read_bytes()
    assert data.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 8
