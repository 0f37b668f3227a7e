"""What every probe gets and gives: the facts, the simulated model, a way to say what it does, and a list of checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, Scaled
from agentao_gov.checklist.running import Running
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.checklist.stage import Stage
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.simulator import Simulator

__all__ = ["Context", "Probe", "StageFactory", "directive", "verdict"]

StageFactory = Callable[[ProbeConfig, Simulator], Stage]


@dataclass
class Context:
    """One run of one item's probe."""

    facts: Facts
    profile: ResolvedProfile
    simulator: Simulator
    #: Hears, in a few words, what the probe does right now.
    say: Callable[[str], None] = lambda _: None
    #: Starts services; the tests' sabotages replace it.
    open_stage: StageFactory = Stage
    #: How long a figure may take to become what it should be: a metric is a second old, a closing server takes 5 s.
    settle_s: float = 20.0
    #: Knows what was started, so that an interrupt can end it.
    running: Running = field(default_factory=Running)
    checks: list[Check] = field(default_factory=list)
    scaled: list[Scaled] = field(default_factory=list)

    def config(self) -> ProbeConfig:
        """The user's configuration, to be scaled."""
        return ProbeConfig.of(self.facts, self.profile)

    def stage(self, config: ProbeConfig) -> Stage:
        """A service with this configuration; the simulated model forgets what was before."""
        self.scaled.extend(entry for entry in config.scaled if entry not in self.scaled)
        self.say("starting the service")
        self.simulator.reset()
        stage = self.open_stage(config, self.simulator)
        self.running.add(stage)
        return stage

    def warn(self, expected: str, observed: object, remedy: Remedy | None = None) -> None:
        """Records an observation that is worth a person's attention and fails nothing."""
        self.checks.append(Check("warn", expected, str(observed), remedy=remedy))

    def note(
        self,
        ok: bool,
        expected: str,
        observed: object,
        evidence: Sequence[object] = (),
        remedy: Remedy | None = None,
    ) -> bool:
        """Records one observation and returns whether it was good."""
        self.checks.append(verdict(ok, expected, observed, evidence, remedy))
        return ok


class Probe(Protocol):
    """An experiment that tries to break one limit. Adds checks to the context."""

    def __call__(self, context: Context, /) -> None: ...


def verdict(
    ok: bool, expected: str, observed: object, evidence: Sequence[object] = (), remedy: Remedy | None = None
) -> Check:
    """A check of an observation."""
    lines = tuple(str(line) for line in evidence)
    return Check("pass" if ok else "fail", expected, str(observed), lines, None if ok else remedy)


def directive(question: str, /, **behaviour: Any) -> str:
    """A question that tells the simulated model how to answer it."""
    return f"{question}\n@sim {json.dumps(behaviour)}"
