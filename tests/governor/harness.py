"""Opens governed sessions on the simulated model with real agentao, a real ledger and a real HTTP client."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.budget.types import Scope, ScopeLimit
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice, Profile, ResolvedProfile
from agentao_gov.config.model import ModelOptions
from agentao_gov.config.profile import ApiFormat
from agentao_gov.governor import (
    Conversation,
    GovernedSession,
    Governor,
    SessionKey,
    SessionSpec,
    TextEvent,
    TurnEvent,
    TurnReport,
    TurnRequest,
)
from agentao_gov.governor.http import HttpClient
from agentao_gov.simulator import Simulator

_turns = itertools.count(1)

#: A hang guard: a turn that is not back by then hangs. The product's own limits are far below.
HANG_S = 15.0


def say(prompt: str = "", /, **directive: Any) -> str:
    """A message that scripts the simulated model."""
    return f"{prompt}\n@sim {json.dumps(directive)}"


def resolved(**settings: Any) -> ResolvedProfile:
    """A profile as a file would give it."""
    return ResolvedProfile(
        profile=Profile.model_validate({"name": "test", **settings}), sources={}, findings=(), path=None
    )


class Harness:
    """One governor with one ledger; closes what it opened."""

    def __init__(self, simulator: Simulator, root: Path, http: HttpClient) -> None:
        self.simulator = simulator
        self._root = root
        self._http = http
        self.ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
        #: The wire on which sessions speak to the model.
        self.api_format: ApiFormat = "openai-completions"
        self.options = ModelOptions()
        self.opened: list[GovernedSession] = []
        self.events: list[TurnEvent] = []
        self.on_event: Callable[[TurnEvent], None] = lambda _: None

    def spec(
        self, session: str = "s1", *, model: str = "simulated", base_url: str | None = None, **settings: Any
    ) -> SessionSpec:
        choice = ModelChoice(
            kind="simulated",
            name=model,
            base_url=base_url or self.simulator.base_url,
            api_key=SecretStr("sk-simulated-0123456789"),
            context_window=None,
            source="test",
            from_flag=False,
            api_format=self.api_format,
            options=self.options,
        )
        return SessionSpec(
            key=SessionKey("acme", session),
            user="ann",
            profile=resolved(**settings),
            model=choice,
            workdir=self._root / session,
            mode="in-process",
        )

    def governor(self, **options: Any) -> Governor:
        return Governor(**{"ledger": self.ledger, "http": self._http, **options})

    def open(
        self,
        session: str = "s1",
        *,
        conversation: Conversation | None = None,
        custom: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> GovernedSession:
        """Opens a session; `custom` tools, `options` of the governor, `settings` the profile's tables."""
        governor = self.governor(tools=lambda _: custom, **(options or {}))
        opened = governor.open(self.spec(session, **settings), conversation, Deadline.after(30))
        self.opened.append(opened)
        return opened

    def ask(self, session: GovernedSession, message: str, *, deadline_s: float | None = None) -> TurnReport:
        """Runs a turn, collecting its events."""
        request = TurnRequest(
            turn_id=f"turn-{next(_turns)}",
            message=message,
            user="ann",
            deadline=Deadline.after(deadline_s) if deadline_s is not None else None,
        )

        def see(event: TurnEvent) -> None:
            self.events.append(event)
            self.on_event(event)

        return session.turn(request, see)

    def run(self, message: str, *, deadline_s: float | None = None, **settings: Any) -> TurnReport:
        """Opens a session and runs one turn."""
        return self.ask(self.open(**settings), message, deadline_s=deadline_s)

    def ask_and_cancel(
        self, session: GovernedSession, message: str, reason: str = "cancelled", *, after_text: bool = False
    ) -> TurnReport:
        """Runs a turn that is cancelled once the model has its request, or once its first text arrived."""
        reports: list[TurnReport] = []
        arrived = threading.Event()
        self.on_event = lambda event: arrived.set() if isinstance(event, TextEvent) else None
        before = self.simulator.truth(requests=False).total.calls
        thread = threading.Thread(target=lambda: reports.append(self.ask(session, message)), daemon=True)
        thread.start()
        self.simulator.wait_for(calls=before + 1)
        assert not after_text or arrived.wait(HANG_S)
        session.cancel(reason)
        thread.join(HANG_S)
        assert not thread.is_alive()
        return reports[0]

    def used(self, report: TurnReport) -> tuple[int, int]:
        """What the ledger holds for the report's tenant: used, reserved."""
        (balance,) = self.ledger.balances([ScopeLimit(Scope("tenant", report.tenant), None)])
        return balance.used, balance.reserved

    def close(self) -> None:
        for session in self.opened:
            session.close(Deadline.after(10))
        self.ledger.close()
