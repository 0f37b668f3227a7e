"""What every probe gets and gives: the facts, a service to try, the simulated model, and a list of checks."""

from __future__ import annotations

import json
import secrets
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, Scaled
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.simulator import Simulator
from agentao_gov.testrig.client import Door, HttpAnswer, ServiceClient, in_background
from agentao_gov.testrig.service import PrivateService, patiently

#: By its prefix the governor knows the simulated tokenizer, and reserves a count instead of bytes.
_MODEL = "simulated-checklist"
GATE = "gate"
#: How long a turn may take to reach the model or be refused: a guard, as sessions open slowly on a loaded machine.
DECIDED_S_MAX = 60.0


class ProbedService(PrivateService):
    """A real `serve` with a probe's configuration, gone afterwards. Use as a context manager."""

    def __init__(self, config: ProbeConfig, simulator: Simulator) -> None:
        self.config = config
        self.simulator = simulator
        super().__init__(
            Path(tempfile.gettempdir()) / f"agentao-gov-checklist-{secrets.token_hex(8)}",
            config.deployment,
            profiles=config.profiles,
            keys={config.tenant: config.keys[config.tenant], **config.keys},
            environment=config.environment,
            flags=("--workers", str(config.workers), "--model", _MODEL, "--base-url", simulator.base_url),
        )


ServiceFactory = Callable[[ProbeConfig, Simulator], ProbedService]


class Endable(Protocol):
    """Something with processes or files."""

    def end(self) -> None:
        """Ends it; may be called again, from any thread. What has not begun by then never begins."""


class WalkOverError(Exception):
    """Raised in a lane when it wants to start something after the walk was ended; unwinds that lane."""


class Running:
    """What a walk has running, so that Ctrl-C ends it while other threads are busy with it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Everything that was started, ended or not; guarded by `_lock`. A dozen entries.
        self._things: list[Endable] = []
        #: Whether `end` was called; guarded by `_lock`.
        self._over = False

    def add(self, thing: Endable) -> None:
        """Takes note of a thing before it starts. Raises WalkOverError once the walk is over."""
        with self._lock:
            over = self._over
            if not over:
                self._things.append(thing)
        if over:
            thing.end()
            raise WalkOverError

    def end(self) -> None:
        """Ends everything, now and for the future. Blocks until the processes are gone."""
        with self._lock:
            self._over = True
            things = list(self._things)
        for thing in reversed(things):
            thing.end()


@dataclass
class Context:
    """One run of one item's probe."""

    facts: Facts
    profile: ResolvedProfile
    simulator: Simulator
    #: Hears, in a few words, what the probe does right now.
    say: Callable[[str], None] = lambda _: None
    #: Starts services; the tests' sabotages replace it.
    open_service: ServiceFactory = ProbedService
    #: How long a figure may take to become what it should be: a metric is a second old, a closing server takes 5 s.
    settle_s: float = 20.0
    #: Knows what was started, so that an interrupt can end it.
    running: Running = field(default_factory=Running)
    checks: list[Check] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)

    def config(self) -> ProbeConfig:
        """The user's configuration, to be scaled."""
        return ProbeConfig.of(self.facts, self.profile)

    def service(self, config: ProbeConfig) -> ProbedService:
        """A service with this configuration, not started yet; the simulated model forgets what was before."""
        self.scaled.extend(entry for entry in config.scaled if entry not in self.scaled)
        self.say("starting the service")
        self.simulator.reset()
        service = self.open_service(config, self.simulator)
        self.running.add(service)
        return service

    def warn(self, expected: str, observed: object, remedy: Remedy | None = None) -> None:
        """Records what was `observed` where something else was `expected`; it is worth attention and fails nothing.

        `remedy`: what to do about it.
        """
        self.checks.append(Check("warn", expected, str(observed), remedy=remedy))

    def note(
        self,
        ok: bool,
        expected: str,
        observed: object,
        evidence: Sequence[object] = (),
        remedy: Remedy | None = None,
    ) -> bool:
        """Records one observation as `verdict` makes it, and returns whether it was good (`ok`)."""
        self.checks.append(verdict(ok, expected, observed, evidence, remedy))
        return ok


#: An experiment that tries to break one limit. It adds checks to the context.
ProbeFunction = Callable[[Context], None]


def verdict(
    ok: bool, expected: str, observed: object, evidence: Sequence[object] = (), remedy: Remedy | None = None
) -> Check:
    """A check of an observation.

    Args:
        ok: whether it was good.
        expected: what must hold, as a sentence without its end.
        observed: what was seen, with the figures.
        evidence: further lines.
        remedy: what mends it, where it was not good.
    """
    lines = tuple(str(line) for line in evidence)
    return Check("pass" if ok else "fail", expected, str(observed), lines, None if ok else remedy)


def directive(question: str, /, **behaviour: Any) -> str:
    """A question that tells the simulated model how to answer it."""
    return f"{question}\n@sim {json.dumps(behaviour)}"


class HeldTurns:
    """Turns that are held open at the simulated model, so that sessions are busy for as long as a probe needs."""

    def __init__(self, simulator: Simulator, client: ServiceClient, profile: str) -> None:
        """`client` asks for turns of `profile`; `simulator` is the model that they are held at."""
        self._simulator = simulator
        self._client = client
        self._profile = profile
        self._futures: dict[str, Future[HttpAnswer]] = {}
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

    def open(self, session: str, user: str, *, door: Door = "turns", gate: str = GATE) -> HttpAnswer | None:
        """Starts a turn; None when it is held at the model, its answer when it was refused.

        Args:
            session: the session's id.
            user: whose turn it is.
            door: the endpoint, and whether the answer is streamed.
            gate: what `release` names to let it go.
        """
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
        return HttpAnswer(0, error=f"neither served nor refused within {DECIDED_S_MAX:.0f} s")

    def release(self, gate: str = GATE) -> dict[str, HttpAnswer]:
        """Lets all turns at a gate go and returns their answers."""
        self._simulator.release(gate, stay_open=True)
        freed = [session for session, at in self._gates.items() if at == gate]
        for session in freed:
            del self._gates[session]
        return {session: _result(self._futures.pop(session)) for session in freed}


def _result(future: Future[HttpAnswer]) -> HttpAnswer:
    try:
        return future.result(DECIDED_S_MAX)
    except FutureTimeoutError:
        return HttpAnswer(0, error="no answer after the model had answered")
