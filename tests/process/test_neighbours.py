"""A session that misbehaves in its own process harms no other session and not the service."""

from __future__ import annotations

import threading

import pytest

from agentao_gov.governor import Outcome
from tests.governor.harness import HANG_S, say
from tests.process.conftest import Subprocesses
from tests.process.test_subprocess_host import python, shell

EATS = 'b = []\nwhile True: b.append(b"x" * (1 << 20))'
FORKS = "import os, time\nfor _ in range(500):\n  if os.fork() == 0: time.sleep(30)"
REGEX = say(text="never", tool={"name": "search_file_content", "args": {"pattern": "(a+)+$", "regex": True}})
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
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command", "search_file_content"]}
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
