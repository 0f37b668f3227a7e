"""A process that plays governed turns until its budgets are spent: `python -m tests.budget.governed '{...}'`.

Real agentao, the real model client, and a ledger file that it shares with its neighbours. Each player asks in one
conversation after the other: a conversation that is refused is followed by a fresh one, whose prompt is the smallest
there is, and a player whose fresh conversation is refused is done. Answers with one JSON line.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agentao_gov.budget import SqliteStore, TokenLedger
from agentao_gov.clock import Deadline
from agentao_gov.config import Deployment, ModelChoice, Profile, ResolvedDeployment, ResolvedProfile
from agentao_gov.governor import Governor, Outcome, SessionKey, SessionSpec, TurnReport, TurnRequest
from tests.budget.working import all_at_once, answer

#: A model named like this is asked for its answer in one piece, because agentao streams nothing from Gemini.
WHOLE_MODEL = "gemini/simulated"

_FIGURES = re.compile(r"budget of (\w+) .*: ([\d,]+) of ([\d,]+) tokens used, .* needs ([\d,]+)")
#: What a report says where the last tokens of a budget went into an answer that wanted more.
_CUT = "in the middle of the answer"


class Players:
    """The players of this process, over one governor and one ledger."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._root = Path(plan["root"])
        limits = {"tenants": plan["tenants"], "budget": plan["budget"]}
        deployment = ResolvedDeployment(Deployment.model_validate(limits), {}, (), None, self._root)
        self._ledger = TokenLedger(SqliteStore(Path(plan["store"])))
        self._governor = Governor(ledger=self._ledger, deployment=deployment)
        profile = Profile.model_validate({"name": "test", "limits": plan["limits"], "tools": {"allow": ["glob"]}})
        self._profile = ResolvedProfile(profile=profile, sources={}, findings=(), path=None)
        #: Turns by their end: answered, cut by the grant, or the kind of scope that had no more.
        self.ends: Counter[str] = Counter()
        #: What was refused although the tokens were there.
        self.wrongly: list[str] = []
        self.errors: list[str] = []

    def play(self, number: int, who: dict[str, Any]) -> None:
        """One player, until nothing fits any more."""
        try:
            conversation = 0
            while self._converse(f"{os.getpid()}-{number}-{conversation}", who):
                conversation += 1
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _converse(self, session: str, who: dict[str, Any]) -> bool:
        """Turns of one session until one is refused; says whether any was answered."""
        tenant, user = who["tenant"], who["user"]
        model = ModelChoice(
            kind="simulated", name=who["model"], base_url=self._plan["url"], api_key=SecretStr(tenant),
            context_window=None, source="test", from_flag=False,
        )  # fmt: skip
        workdir = self._root / session
        workdir.mkdir()
        spec = SessionSpec(SessionKey(tenant, session), user, self._profile, model, workdir, "in-process")
        host = self._governor.open(spec, None, Deadline.after(60))
        behaviour = {"tag": f"{tenant} {user} {session}", **self._plan["behaviour"]}
        answered = 0
        try:
            while True:
                message = f"turn {answered}\n@sim {json.dumps(behaviour)}"
                report = host.turn(TurnRequest(f"{session}-{answered}", message, user), lambda _: None)
                answered += 1
                if not self._goes_on(report):
                    return answered > 1
        finally:
            host.close(Deadline.after(10))

    def _goes_on(self, report: TurnReport) -> bool:
        """A refusal is right only where the call could not fit even if all others gave back what they hold."""
        if report.outcome is Outcome.ANSWERED:
            self.ends["answered"] += 1
            return True
        detail = report.detail or ""
        found = _FIGURES.search(detail)
        if report.outcome is Outcome.BUDGET_EXHAUSTED and found is not None:
            used, limit, asked = (int(figure.replace(",", "")) for figure in found.groups()[1:])
            self.ends[found[1]] += 1
            if used + asked > limit:
                return False
        elif report.outcome is Outcome.BUDGET_EXHAUSTED and _CUT in detail:
            self.ends["cut"] += 1
            return True
        self.wrongly.append(f"{report.outcome}: {detail}")
        return False

    def close(self) -> None:
        self._governor.close()
        self._ledger.close()


def main(plan: dict[str, Any]) -> dict[str, Any]:
    """All players at once, after the parent's word."""
    players = Players(plan)
    threads = [threading.Thread(target=players.play, args=pair) for pair in enumerate(plan["players"])]
    all_at_once(threads)
    players.close()
    return {"ends": players.ends, "wrongly": players.wrongly, "errors": players.errors}


if __name__ == "__main__":
    answer(main)
