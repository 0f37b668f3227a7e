"""Turns that are held open at the simulated model, so that sessions are busy for as long as a probe needs."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from agentao_gov.checklist.client import Answer, Door, ServiceClient, in_background
from agentao_gov.checklist.probe import directive
from agentao_gov.checklist.stage import patiently
from agentao_gov.simulator import Simulator

__all__ = ["Holding"]

GATE = "gate"
#: How long a turn may take to reach the model or be refused: a guard, as sessions open slowly on a loaded machine.
DECIDED_S_MAX = 60.0


class Holding:
    """Starts turns and keeps those that reach the model there."""

    def __init__(self, simulator: Simulator, client: ServiceClient, profile: str) -> None:
        self._simulator = simulator
        self._client = client
        self._profile = profile
        self._futures: dict[str, Future[Answer]] = {}
        #: The gate each session waits at.
        self._gates: dict[str, str] = {}

    @property
    def held(self) -> int:
        """Turns at the model now."""
        return self._simulator.truth(requests=False).held

    @property
    def sessions(self) -> list[str]:
        """Those whose turns have not been let go."""
        return list(self._futures)

    def open(self, session: str, user: str, *, door: Door = "turns", gate: str = GATE) -> Answer | None:
        """Starts a turn; None when it is held at the model, its answer when it was refused."""
        before = self.held
        message = directive("hold", hold=gate, text="held and answered")
        future = in_background(self._client.turn, session, message, profile=self._profile, user=user, door=door)
        for _ in patiently(DECIDED_S_MAX):
            if future.done():
                return future.result()
            if self.held > before:
                self._futures[session], self._gates[session] = future, gate
                return None
        self._futures[session], self._gates[session] = future, gate
        return Answer(0, error=f"neither served nor refused within {DECIDED_S_MAX:.0f} s")

    def release(self, gate: str = GATE) -> dict[str, Answer]:
        """Lets all turns at a gate go and returns their answers."""
        self._simulator.release(gate, stay_open=True)
        freed = [session for session, at in self._gates.items() if at == gate]
        for session in freed:
            del self._gates[session]
        return {session: _result(self._futures.pop(session)) for session in freed}


def _result(future: Future[Answer]) -> Answer:
    try:
        return future.result(DECIDED_S_MAX)
    except FutureTimeoutError:
        return Answer(0, error="no answer after the model had answered")
