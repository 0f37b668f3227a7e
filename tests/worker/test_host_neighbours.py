"""A session that misbehaves in its own process harms no other session and not the service."""

from __future__ import annotations

import statistics
import threading
import time

import pytest

from agentao_gov.governor import Outcome
from agentao_gov.worker.host import SubprocessHost
from tests.governor.harness import HANG_S, say
from tests.worker.sessions import Subprocesses, python, shell

EATS = 'b = []\nwhile True: b.append(b"x" * (1 << 20))'
FORKS = "import os, time\nfor _ in range(500):\n  if os.fork() == 0: time.sleep(30)"
REGEX = say(text="never", tool={"name": "search_file_content", "args": {"pattern": "(a|aa)+$", "regex": True}})
TROUBLES = {
    "memory": shell(python(EATS)),
    "forks": shell(python(FORKS)),
    "regex": REGEX,
    "spins": shell("while :; do :; done"),
}
#: The last two are ended by their own limits, and their turns go on.
ENDS = {Outcome.INTERNAL_ERROR, Outcome.TURN_TIMEOUT, Outcome.ANSWERED}


@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_others_are_answered_while_a_session_misbehaves(subprocesses: Subprocesses, trouble: str) -> None:
    """A memory eater, a fork bomb, a regular expression that never returns, a loop: the neighbour's turns all end well.

    How much slower they get is a figure, not a test: `benchmarks/isolation`.
    """
    neighbour = subprocesses.open(limits={"turn_timeout": 10})
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command", "search_file_content"], "sandbox": "off"}
    hog = subprocesses.open(tools=tools, limits={"turn_timeout": 2, "tool_timeout": 2, "cancel_grace": 1})
    (hog.spec.workdir / "bait.txt").write_text("a" * 40 + "b\n")
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(subprocesses.ask(hog, TROUBLES[trouble]).outcome))
    thread.start()

    reports = [subprocesses.ask(neighbour, say(text=f"answer {number}")) for number in range(15)]
    thread.join(HANG_S)

    assert [report.answer for report in reports] == [f"answer {number}" for number in range(15)]
    assert outcomes[0] in (ENDS if trouble in {"regex", "spins"} else ENDS - {Outcome.ANSWERED})
    assert subprocesses.ask(hog, say(text="well again"), deadline_s=10).answer == "well again"


#: How much slower a neighbour's slow turns may be, and how often that is tried. Other work on the machine comes in
#: bursts: they fall into some windows, not into most of them, so that each is compared with the one right before it.
RATIO_MAX, TRIES = 1.5, 3
WINDOW_S, WINDOWS = 1.5, 5


def turn_times_ms(subprocesses: Subprocesses, host: SubprocessHost, window_s: float) -> list[float]:
    times = []
    until = time.monotonic() + window_s
    while time.monotonic() < until:
        began = time.perf_counter()
        assert subprocesses.ask(host, say(text="ok", first_token="50ms")).answer == "ok"
        times.append((time.perf_counter() - began) * 1000)
    return times


def p95_ratios(subprocesses: Subprocesses, trouble: str) -> list[float]:
    """The 95th percentile of a neighbour's turns beside the trouble by that alone, from windows that take turns."""
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command", "search_file_content"], "sandbox": "off"}
    ratios = []
    for _ in range(WINDOWS):
        # A conversation of hundreds of turns would be what is measured.
        neighbour, hog = subprocesses.open(limits={"turn_timeout": 10}), subprocesses.open(
            tools=tools, limits={"turn_timeout": 2, "tool_timeout": 2, "cancel_grace": 1}
        )  # fmt: skip
        (hog.spec.workdir / "bait.txt").write_text("a" * 40 + "b\n")
        subprocesses.ask(neighbour, say(text="warm"))
        quiet = turn_times_ms(subprocesses, neighbour, WINDOW_S)
        over = threading.Event()

        def misbehave(hog: SubprocessHost = hog, over: threading.Event = over) -> None:
            while not over.is_set():
                subprocesses.ask(hog, TROUBLES[trouble])

        thread = threading.Thread(target=misbehave)
        thread.start()
        beside = turn_times_ms(subprocesses, neighbour, WINDOW_S)
        over.set()
        thread.join(HANG_S)
        hog.kill()
        neighbour.kill()
        ratios.append(statistics.quantiles(beside, n=20)[-1] / statistics.quantiles(quiet, n=20)[-1])
    return ratios


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("trouble", sorted(TROUBLES))
def test_a_session_that_misbehaves_costs_its_neighbours_little_time(subprocesses: Subprocesses, trouble: str) -> None:
    """Their p95 turn time stays within one and a half times of its quiet value."""
    seen = []
    for _ in range(TRIES):
        seen.append(p95_ratios(subprocesses, trouble))
        if statistics.median(seen[-1]) < RATIO_MAX:
            return
    pytest.fail(f"p95 beside it by p95 alone: {seen}")
