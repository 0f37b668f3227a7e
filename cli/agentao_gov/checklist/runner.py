"""Walks the checklist: static findings and the experiment of each item, two items at a time, and the verdict.

Half of a walk is waiting (for time-outs, drains, idle sessions), so two items side by side take little more than one.
Each lane has a simulated model of its own, and each probe services of its own: items share nothing but the machine.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.items import Item, ItemId
from agentao_gov.checklist.probe import Context, ProbedService, ProbeFunction, Running, ServiceFactory, WalkOverError
from agentao_gov.checklist.probes import PROBES
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, ChecklistReport, ItemReport, assemble, judge, place_of, skipped
from agentao_gov.checklist.static import static_checks
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.errors import GovError
from agentao_gov.simulator import Simulator, start_simulator

#: More lanes than two gain nothing: what is left is work, not waiting.
LANES_MAX = 2
#: How long an interrupted lane may take to notice that everything it used is gone.
UNWIND_S = 2.0


class Listener:
    """Hears how the walk goes; override what is of interest. Called on the walking thread; items may overlap."""

    def began(self, item: Item) -> None:
        """Hears that an item is being tried."""

    def doing(self, item: Item, what: str) -> None:
        """Hears `what` an item's probe does now."""

    def ended(self, report: ItemReport) -> None:
        """Hears that an item is decided."""


@dataclass
class _Walk:
    """What the lanes of one walk share."""

    facts: Facts
    profile: ResolvedProfile
    open_service: ServiceFactory
    probes: Mapping[ItemId, ProbeFunction]
    settle_s: float
    #: Items that nobody has begun. A deque's ends are thread-safe.
    waiting: deque[Item]
    running: Running = field(default_factory=Running)
    #: What the lanes tell the walking thread, which alone speaks to the listener.
    events: queue.SimpleQueue[Callable[[Listener], ItemReport | None] | BaseException] = field(
        default_factory=queue.SimpleQueue
    )
    static: Mapping[ItemId, list[Check]] = field(default_factory=dict)

    def lane(self) -> None:
        """Tries one item after the other, until none is left."""
        try:
            with start_simulator() as simulator:
                self.running.add(_Ending(simulator))
                while (item := self._next()) is not None:
                    self.events.put(partial(_began, item))
                    self.events.put(partial(_ended, self._item(item, simulator)))
        except WalkOverError:
            return
        except BaseException as error:
            self.events.put(error)

    def _next(self) -> Item | None:
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def _item(self, item: Item, simulator: Simulator) -> ItemReport:
        began = time.monotonic()
        context = Context(
            self.facts,
            self.profile,
            simulator,
            say=lambda what: self.events.put(partial(_doing, item, what)),
            open_service=self.open_service,
            settle_s=self.settle_s,
            running=self.running,
        )
        simulator.reset()
        try:
            self.probes[item.id](context)
        except (GovError, TimeoutError, OSError) as error:
            # What a probe could not even try is no reason to stop trying the others.
            text = f"{type(error).__name__}: {getattr(error, 'message', error)}"
            context.note(False, "the probe can be carried out", text, remedy=_NOT_CARRIED_OUT)
        checks = [*self.static.get(item.id, ()), *context.checks]
        took_ms = round((time.monotonic() - began) * 1000)
        place = place_of(checks, self.facts)
        return assemble(item, checks, duration_ms=took_ms, scaled=context.scaled, place=place)


@dataclass(frozen=True, slots=True)
class _Ending:
    """A simulator as something that can be ended."""

    simulator: Simulator

    def end(self) -> None:
        self.simulator.close()


_NOT_CARRIED_OUT = Remedy(
    note="The machine or the service kept the probe from its work, see the observation: free ports, memory, and what "
    "`agentao-gov serve` with this configuration says"
)


def _began(item: Item, listener: Listener) -> None:
    listener.began(item)


def _doing(item: Item, what: str, listener: Listener) -> None:
    listener.doing(item, what)


def _ended(report: ItemReport, listener: Listener) -> ItemReport:
    listener.ended(report)
    return report


def walk(
    facts: Facts,
    profile: ResolvedProfile,
    chosen: Iterable[tuple[Item, bool]],
    *,
    config: str,
    strict: bool = False,
    listener: Listener | None = None,
    open_service: ServiceFactory = ProbedService,
    probes: Mapping[ItemId, ProbeFunction] = PROBES,
    settle_s: float = 20.0,
) -> ChecklistReport:
    """Tries each chosen item against a real service of this configuration, started for it and ended after it.

    KeyboardInterrupt ends the walk and everything it started. Blocks for about a minute.

    Args:
        facts: the configuration.
        profile: the one whose turns are probed.
        chosen: every item with whether it is to be tried.
        config: how the report names the configuration.
        strict: a warning fails.
        listener: hears how it goes.
        open_service: makes the services; tests put a broken product here.
        probes: the experiments by item.
        settle_s: how long a figure may take to become what it should be.
    """
    listener = listener or Listener()
    began, started_at = time.monotonic(), datetime.now(UTC)
    choice = list(chosen)
    wanted = deque(item for item, asked in choice if asked)
    shared = _Walk(facts, profile, open_service, probes, settle_s, wanted, static=static_checks(facts))
    reports = [skipped(item, "not asked for") for item, asked in choice if not asked]
    for report in reports:
        listener.ended(report)
    reports += _walk_all(shared, listener)
    reports.sort(key=lambda report: report.number)
    return ChecklistReport(
        verdict=judge(reports, strict=strict),
        config=config,
        profile=profile.profile.name,
        strict=strict,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        items=tuple(reports),
    )


def _walk_all(shared: _Walk, listener: Listener) -> list[ItemReport]:
    reports: list[ItemReport] = []
    count = len(shared.waiting)
    cores = len(os.sched_getaffinity(0))
    lanes = [
        threading.Thread(target=shared.lane, name=f"checklist-{n}", daemon=True)
        for n in range(min(LANES_MAX, cores, count))
    ]
    try:
        for lane in lanes:
            lane.start()
        while len(reports) < count:
            event = shared.events.get()
            if isinstance(event, BaseException):
                raise event  # noqa: TRY301 - the same clean-up as for an interrupt
            if (report := event(listener)) is not None:
                reports.append(report)
    except BaseException:
        shared.running.end()
        end = time.monotonic() + UNWIND_S
        for lane in lanes:
            lane.join(max(0.0, end - time.monotonic()))
        raise
    for lane in lanes:
        lane.join()
    return reports
