"""Never green on nothing: the twelve ways a run can end, each with its exit code and valid reports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

from agentao_gov.loadtest.document import schema

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass
class Case:
    """One ending: what the stub does, what the command is told, what happens to it, how it must end."""

    stub: dict[str, Any]
    flags: list[str]
    code: int
    conclusion: str
    #: What the test does once turns are being sent.
    meanwhile: Callable[[subprocess.Popen[bytes], subprocess.Popen[bytes]], None] | None = None
    outcome: str | None = None
    #: Bad configuration: refused before anything starts; standard output then holds an error object.
    refused: bool = False


def _signal(signum: int) -> Callable[..., None]:
    return lambda command, _stub: command.send_signal(signum)


def _kill_locust(command: subprocess.Popen[bytes], _stub: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(command.pid).children(recursive=True):
        if "locust" in " ".join(child.cmdline()):
            child.kill()


def _kill_service(_command: subprocess.Popen[bytes], stub: subprocess.Popen[bytes]) -> None:
    stub.kill()


QUICK = ["--rate", "80", "--duration", "1.5s"]
LONG = ["--rate", "20", "--duration", "120s"]
CASES = {
    # A slow service leaves the generator of a busy test machine some room: its lateness is judged against latency.
    "pass": Case({"service_s": 4.0}, [*QUICK, "--threshold", "turn_p95<20s"], 0, "pass", outcome="answered"),
    "threshold failed": Case({"service_s": 0.2}, [*QUICK, "--threshold", "turn_p95<100ms"], 1, "fail"),
    "too few samples": Case({}, ["--rate", "10", "--duration", "1s", "--threshold", "turn_p95<5s"], 11, "inconclusive"),
    # The first arrival of this schedule lies beyond its end.
    "no samples": Case({}, ["--rate", "0.001", "--duration", "1s", "--threshold", "turn_p95<5s"], 11, "inconclusive"),
    "all hang": Case({"behaviour": "hang"}, [*QUICK, "--drain", "1s"], 1, "fail", outcome="unfinished"),
    "all 429": Case({"behaviour": "429"}, QUICK, 1, "fail", outcome="queue_full"),
    "service dies": Case({}, ["--rate", "30", "--duration", "6s"], 1, "fail", _kill_service, "connection_error"),
    "locust dies": Case({"service_s": 0.2}, LONG, 11, "inconclusive", _kill_locust),
    # More than one process can send: it says so itself.
    "generator-bound": Case(
        {}, ["--rate", "8000", "--duration", "0.5s", "--threshold", "turn_p95<30s"], 11, "inconclusive"
    ),
    "bad configuration": Case({}, ["--config", "/nonexistent/agentao-gov.toml"], 3, "fail", refused=True),
    "SIGINT": Case({"service_s": 0.2}, LONG, 130, "interrupted", _signal(signal.SIGINT)),
    "SIGTERM": Case({"service_s": 0.2}, LONG, 143, "interrupted", _signal(signal.SIGTERM)),
}


@dataclass
class Ended:
    """How a case ended."""

    code: int
    stdout: str
    stderr: str
    folder: Path
    left: list[str]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All but one at once: each spends most of its time waiting. The last one would hold the others up, and is to."""
    with contextlib.ExitStack() as stack:
        ends: dict[str, Ended] = {}
        for names in (CASES.keys() - {"generator-bound"}, {"generator-bound"}):
            running = {name: _start(CASES[name], tmp_path_factory.mktemp("report"), stack) for name in names}
            for name, (command, stub, folder) in running.items():
                meanwhile = CASES[name].meanwhile
                if meanwhile is not None:
                    _wait_for_turns(command, folder)
                    meanwhile(command, stub)
            ends |= {name: _finish(*parts) for name, parts in running.items()}
        yield ends


def _start(case: Case, folder: Path, stack: contextlib.ExitStack) -> tuple[Any, Any, Path]:
    stub = subprocess.Popen(
        [sys.executable, "-m", "tests.loadtest.stub", json.dumps(case.stub)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    stack.callback(_end, stub)
    assert stub.stdout is not None
    url = f"http://127.0.0.1:{int(stub.stdout.readline())}"
    flags = ["--target", url, "--no-checklist", "--mix", "qa=1", "--turns", "1", "--report", str(folder), "--json"]
    command = subprocess.Popen(
        [sys.executable, "-m", "agentao_gov.main", "loadtest", *flags, *case.flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
        env={**os.environ, "TMPDIR": str(folder), "GITHUB_ACTIONS": "true", "FORCE_COLOR": "1", "COLUMNS": "20"},
    )  # fmt: skip
    stack.callback(_end, command)
    return command, stub, folder


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _wait_for_turns(command: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not any('"t":"turn"' in path.read_text() for path in folder.glob("*/generator/samples.jsonl")):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _finish(command: subprocess.Popen[bytes], _stub: subprocess.Popen[bytes], folder: Path) -> Ended:
    out, err = command.communicate(timeout=100)
    left = [
        " ".join(p.info["cmdline"] or ())
        for p in psutil.process_iter(["cmdline"])
        if "locust" in " ".join(p.info["cmdline"] or ()) and f"{folder}/" in str(_environment(p))
    ]
    return Ended(command.returncode, out.decode(), err.decode(), folder, left)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.mark.parametrize("name", list(CASES))
def test_an_ending_has_its_exit_code_and_its_reports(ended: dict[str, Ended], name: str) -> None:
    """Exit code, conclusion, books that balance, and all four reports with the same numbers."""
    case, end = CASES[name], ended[name]

    assert end.code == case.code, end.stderr
    said = json.loads(end.stdout)
    report = json.loads((end.folder / "report.json").read_text())
    if case.refused:
        assert set(said["error"]) == {"code", "message", "hint"}
    else:
        assert said == report
    jsonschema.validate(report, schema())
    assert (report["conclusion"], report["exit_code"], report["imbalances"]) == (case.conclusion, case.code, [])
    assert (report["verdict"] == "pass") == (case.code == 0)
    turns = report["turns"]
    ends = sum(turns[key] for key in ("answered", "failed", "timed_out", "cancelled", "unfinished"))
    assert turns["attempted"] == ends == sum(turns["by_outcome"].values())
    if case.outcome is not None:
        assert turns["by_outcome"].get(case.outcome, 0) > 0
    _same_numbers(report, end.folder)
    assert end.left == []


def test_there_are_twelve_endings() -> None:
    """One of them a pass; with the others the gate stays shut."""
    assert len(CASES) == 12
    assert [name for name, case in CASES.items() if case.code == 0] == ["pass"]


def _same_numbers(report: dict[str, Any], folder: Path) -> None:
    turns = report["turns"]
    books = (
        f"{turns['answered']} answered, {turns['failed']} failed, {turns['timed_out']} timed out, "
        f"{turns['cancelled']} cancelled, {turns['unfinished']} unfinished"
    )
    html, text = (folder / "report.html").read_text(), (folder / "summary.md").read_text()
    xml = ET.parse(folder / "junit.xml").getroot()
    properties = {p.get("name"): p.get("value") for p in xml.iter("property")}
    wrong = [
        case for case in xml.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]

    assert books in html
    assert books in text
    assert properties["conclusion"] == report["conclusion"]
    # A CI system that only looks at JUnit must see what the exit code says.
    assert bool(wrong) == (report["verdict"] != "pass")
    assert all(reason in unescape(html) for reason in report["reasons"])
    assert (properties["attempted"], properties["answered"]) == (str(turns["attempted"]), str(turns["answered"]))
    statuses = {case.get("name"): [child.tag for child in case] for case in xml.iter("testcase")}
    for threshold in report["thresholds"]:
        tags = statuses[threshold["expression"]]
        assert ("failure" in tags, "error" in tags) == (
            threshold["status"] == "fail",
            threshold["status"] == "inconclusive",
        )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "locust dies", "service dies"])
def test_a_run_cut_short_says_so(ended: dict[str, Ended], name: str) -> None:
    """The report holds what was seen, marked as partial."""
    report = json.loads((ended[name].folder / "report.json").read_text())

    assert report["partial"] is True
    assert report["turns"]["attempted"] > 0
    assert report["reasons"]
