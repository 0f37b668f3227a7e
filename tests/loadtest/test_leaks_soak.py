"""A soak finds a leak of memory, descriptors or children in the real service, and none in its clean twin."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.loadtest.own import Run, start_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: What leaks, and the threshold that must find it. The clean twin runs beside them, under the same conditions.
BUILDS = {"bytes": "memory_slope", "fds": "fds_leaked", "children": "processes_leaked", "nothing": None}


@pytest.fixture(scope="module")
def soaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The report of a soak of 70 s for each build, all at once."""
    flags = ("--shape", "soak", "--duration", "70s", "--rate", "8", "--turns", "3", "--seed", "5", "--report", "report")
    runs: dict[str, Run] = {
        build: start_run(tmp_path_factory.mktemp(build), *flags, leak=build, HOME=str(tmp_path_factory.mktemp("home")))
        for build in BUILDS
    }
    return {build: _report(run) for build, run in runs.items()}


def _report(run: Run) -> dict[str, Any]:
    code, report, error = run.end()
    assert code in (0, 1, 11), error
    assert json.loads((run.folder / "report" / "report.json").read_text()) == report
    assert report["duration_s"] < 120
    return report


@pytest.mark.parametrize("build", ["bytes", "fds", "children"])
def test_a_leaking_build_of_the_real_service_is_found_within_120_s(
    soaks: dict[str, dict[str, Any]], build: str
) -> None:
    """50 KB a turn, a descriptor a session, a process a session: each fails its own threshold, and the run."""
    report = soaks[build]
    statuses = {part["expression"].split("<")[0]: part["status"] for part in report["thresholds"]}

    assert statuses[BUILDS[build] or ""] == "fail", report["server"]["leaks"]
    assert report["exit_code"] == 1
    others = {"memory_slope", "fds_leaked", "processes_leaked", "threads_leaked"} - {BUILDS[build]}
    assert {name for name in others if statuses[name] == "fail"} == set(), report["server"]["leaks"]


def test_a_leak_is_as_large_as_it_is(soaks: dict[str, dict[str, Any]]) -> None:
    """The slope's interval has 50 KB in it, give or take the service's own; counts are one a session."""
    slope = soaks["bytes"]["server"]["leaks"]["memory_bytes_per_turn"]
    sessions = soaks["fds"]["latency_ms"]["session"]["count"]

    assert slope["low"] < 50 * 1024 * 1.3
    assert slope["high"] > 50 * 1024 * 0.8
    assert soaks["fds"]["server"]["leaks"]["fds"]["leaked"] == pytest.approx(sessions, rel=0.4)
    assert soaks["children"]["server"]["leaks"]["children"]["leaked"] == pytest.approx(sessions, rel=0.4)


def test_the_clean_twin_is_not_called_leaking(soaks: dict[str, dict[str, Any]]) -> None:
    """Every leak threshold of the defaults holds, and it has come to rest."""
    report = soaks["nothing"]
    statuses = {part["expression"]: part["status"] for part in report["thresholds"]}
    leaks = {text: status for text, status in statuses.items() if "_leaked" in text or "slope" in text}

    assert len(leaks) == 4
    assert set(leaks.values()) == {"pass"}, report["server"]["leaks"]
    assert statuses["back_to_idle<10s"] == "pass"


def test_a_soak_shows_what_stays_from_rest_to_rest(soaks: dict[str, dict[str, Any]]) -> None:
    """Seven rests: before the load, five between its six waves, and after it. A busy machine may miss one."""
    for report in soaks.values():
        assert len(report["server"]["leaks"]["rests_s"]) == 7
        assert len(report["server"]["leaks"]["fds"]["floors"]) >= 5
