"""Walks the checklist: static findings and the experiment of each item, one after the other, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.items import Item, ItemId
from agentao_gov.checklist.probe import Context, Probe, StageFactory
from agentao_gov.checklist.probes import PROBES
from agentao_gov.checklist.report import Check, ChecklistReport, ItemReport, assemble, judge, skipped
from agentao_gov.checklist.stage import Stage
from agentao_gov.checklist.static import static_checks
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.errors import GovError
from agentao_gov.simulator import Simulator, start_simulator

__all__ = ["Listener", "Silent", "walk"]


class Listener:
    """Hears how the walk goes; override what is of interest. Called on the walking thread."""

    def began(self, item: Item) -> None:
        """An item is being tried."""

    def doing(self, item: Item, what: str) -> None:
        """What its probe does now."""

    def ended(self, report: ItemReport) -> None:
        """An item is decided."""


Silent = Listener


@dataclass
class _Walk:
    """What the items of one walk share."""

    facts: Facts
    profile: ResolvedProfile
    simulator: Simulator
    listener: Listener
    open_stage: StageFactory
    probes: Mapping[ItemId, Probe]
    static: Mapping[ItemId, list[Check]] = field(default_factory=dict)
    settle_s: float = 20.0

    def item(self, item: Item) -> ItemReport:
        began = time.monotonic()
        context = Context(
            self.facts,
            self.profile,
            self.simulator,
            say=lambda what: self.listener.doing(item, what),
            open_stage=self.open_stage,
            settle_s=self.settle_s,
        )
        self.simulator.reset()
        try:
            self.probes[item.id](context)
        except (GovError, TimeoutError, OSError) as error:
            # What a probe could not even try is no reason to stop trying the others.
            text = f"{type(error).__name__}: {getattr(error, 'message', error)}"
            context.note(False, "the probe can be carried out", text)
        checks = [*self.static.get(item.id, ()), *context.checks]
        took_ms = round((time.monotonic() - began) * 1000)
        return assemble(item, checks, duration_ms=took_ms, scaled=context.scaled)


def walk(
    facts: Facts,
    profile: ResolvedProfile,
    chosen: Iterable[tuple[Item, bool]],
    *,
    config: str,
    strict: bool = False,
    listener: Listener | None = None,
    open_stage: StageFactory = Stage,
    probes: Mapping[ItemId, Probe] = PROBES,
    settle_s: float = 20.0,
) -> ChecklistReport:
    """Tries each chosen item against a real service of this configuration, started for it and ended after it.

    KeyboardInterrupt ends the walk and everything it started. Blocks for about a minute.
    """
    listener = listener or Silent()
    began, started_at = time.monotonic(), datetime.now(UTC)
    reports = []
    with start_simulator() as simulator:
        ground = _Walk(facts, profile, simulator, listener, open_stage, probes, static_checks(facts), settle_s)
        for item, wanted in chosen:
            if wanted:
                listener.began(item)
                reports.append(ground.item(item))
            else:
                reports.append(skipped(item, "not asked for"))
            listener.ended(reports[-1])
    return ChecklistReport(
        verdict=judge(reports, strict=strict),
        config=config,
        profile=profile.profile.name,
        strict=strict,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        items=tuple(reports),
    )
