"""Many turns at once on everything that can go wrong, from a seed: one report each, in time, and all of it paid."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import pytest

from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.governor.session import GovernedSession
from tests.governor.harness import Harness, say
from tests.governor.test_session import Recorder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("on_each_wire")]

DEADLINE_S, GRACE_S = 1.5, 2.0
LIMITS = {"turn_timeout": DEADLINE_S, "cancel_grace": GRACE_S, "tool_timeout": 0.6, "max_output_tokens": 200}
TOOLS: dict[str, Any] = {"permission_mode": "full-access", "allow": ["glob", "run_shell_command"], "sandbox": "off"}


def behaviours(rng: random.Random) -> dict[str, Any]:
    """One of what models, providers and tools do."""
    faults: list[Any] = ["hang", "stall", "drip", "drop", "html", "malformed", "error_event", "no_done", "429", "500"]
    shell = {"name": "run_shell_command", "args": {"command": "sleep 30 & sleep 30"}}
    background = {"name": "run_shell_command", "args": {"command": "sleep 30", "is_background": True}}
    endless = {"name": "glob", "args": {"pattern": "{round}*"}, "vary": True, "rounds": "endless"}
    same = {"name": "glob", "args": {"pattern": "*"}, "rounds": "endless"}
    kind = rng.randrange(8)
    if kind < 3:
        return {"text": "a b c d e f g h", "fault": rng.choice(faults), "usage": rng.choice(["exact", "missing"])}
    others: list[dict[str, Any]] = [
        {"text": "fine"},
        {"text": "fine", "tool": shell},
        {"text": "fine", "tool": background},
        {"tool": rng.choice([endless, same])},
        {"answer_tokens": 500, "per_token": rng.choice([0.0, 0.02])},
    ]
    return others[kind - 3]


@pytest.mark.parametrize("seed", [1, 2])
def test_every_turn_ends_with_one_report_in_time_and_is_paid(harness: Harness, seed: int) -> None:
    """
    1. twelve sessions run four turns each, side by side; some are cancelled
    2. each turn returned exactly one report, within its deadline plus grace (with slack for a loaded machine)
    3. nothing stays reserved, and the ledger holds at least what the provider produced
    4. every session goes on afterwards
    """
    rng = random.Random(seed)
    recorder = Recorder()
    sessions = [harness.open(f"s{n}", tools=TOOLS, limits=LIMITS, options={"observers": [recorder]}) for n in range(12)]
    plans = [[(behaviours(rng), rng.random() < 0.15) for _ in range(4)] for _ in sessions]
    ended: list[tuple[TurnReport, float]] = []

    def work(session: GovernedSession, plan: list[tuple[dict[str, Any], bool]]) -> None:
        for behaviour, cancel in plan:
            timer = threading.Timer(0.2, session.cancel, ["cancelled"])
            if cancel:
                timer.start()
            began = time.monotonic()
            report = harness.ask(session, say("go", **behaviour))
            ended.append((report, time.monotonic() - began))
            timer.cancel()

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(sessions, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)

    assert len(ended) == 48
    assert Counter(r.turn_id for r in recorder.reports) == Counter(r.turn_id for r, _ in ended)
    assert max(seconds for _, seconds in ended) < DEADLINE_S + GRACE_S + 5
    outcomes = {report.outcome for report, _ in ended}
    assert outcomes.isdisjoint({Outcome.INTERNAL_ERROR, Outcome.STUCK, Outcome.STORE_UNAVAILABLE})
    assert len(outcomes) >= 4
    truth = harness.simulator.wait_for(idle=True).total
    used, reserved = harness.used(ended[0][0])
    assert reserved == 0
    assert used == sum(report.usage.total_tokens for report, _ in ended)
    assert used >= truth.prompt_tokens + truth.completion_tokens
    again = [harness.ask(session, say(text="still here"), deadline_s=20).answer for session in sessions]
    assert again == ["still here"] * len(sessions)
