"""Runs a batch: several turns at once, a report a line as they end, and on where an earlier run stopped."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from agentao_gov.batch import (
    INTERRUPTED,
    BatchItem,
    batch_exit_code,
    finished,
    next_ready,
)
from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError, UsageError
from agentao_gov.governor.report import TurnReport
from agentao_gov.report.terminal import console
from agentao_gov.simulator.embedded import answered_by, running_model

if TYPE_CHECKING:
    from agentao_gov.commands.run_context import Agent, RunContext
    from agentao_gov.config import ModelChoice
    from agentao_gov.pool import TurnOrder

_LOOK_S = 0.1
#: Where nobody looks at a terminal: a line at most this often.
_LINE_EVERY_S = 5.0


@dataclass(slots=True)
class _Run:
    context: RunContext
    out: TextIO
    waiting: list[BatchItem]
    jobs: int
    running: dict[concurrent.futures.Future[TurnReport], BatchItem] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    agents: dict[str, Agent] = field(default_factory=dict)
    stopping: bool = False

    def order(self, item: BatchItem) -> TurnOrder:
        """The turn of a line, under the profile and with the model that the line names."""
        agent = self.agents.get(item.profile) if item.profile else None
        return self.context.order(item.prompt, session=item.session, agent=agent, id=item.id)


def run_batch(context: RunContext, items: Sequence[BatchItem]) -> int:
    """The whole batch; returns 0, the code of the most frequent failure, or 130 when interrupted."""
    output = context.options.output
    # Output as it is written by this run; on standard output when no file is named.
    done = finished(output) if output is not None else {}
    before = [done[item.id] for item in items if item.id in done]
    waiting = [item for item in items if item.id not in done]
    with contextlib.ExitStack() as stack:
        # Every profile is loaded, and every local model started, before the first turn: a typing error in the last
        # line must not cost a night. The output is opened after that, so that such an error leaves no file behind.
        agents = _agents(context, {i.profile for i in waiting if i.profile}, stack)
        run = _Run(context, stack.enter_context(_output(output)), waiting, _jobs(context), agents=agents)
        with _progress(context, total=len(items), done=len(before)) as advance:
            interrupted = _drive(run, advance)
    left = len(items) - len(before) - len(run.outcomes)
    _summary(run, done_before=len(before), left=left if interrupted else None)
    return 130 if interrupted else batch_exit_code([*before, *run.outcomes])


def _agents(context: RunContext, names: set[str], processes: contextlib.ExitStack) -> dict[str, Agent]:
    """The profiles of the lines with their models. A kind of local model has one process, ended with `processes`."""
    running = {context.model.kind: context.model}

    def start(choice: ModelChoice) -> ModelChoice:
        if choice.kind not in running:
            running[choice.kind], _ = processes.enter_context(running_model(choice, gguf=context.options.gguf))
        return answered_by(choice, running[choice.kind])

    return {name: context.load_agent(name, start) for name in sorted(names)}


def _jobs(context: RunContext) -> int:
    """`--jobs`, or what the pool and the tenant may have at once where that is less: a batch waits instead."""
    plain = context.deployment.deployment
    tenant = plain.tenants.get(context.options.tenant) or plain.tenants.get("default")
    caps = {"[pool] max_busy": plain.pool.max_busy, "[pool] max_sessions": plain.pool.max_sessions}
    if tenant is not None:
        caps |= {
            name: cap
            for name, cap in (
                ("the tenant's max_sessions", tenant.max_sessions),
                ("the tenant's max_sessions_per_user", tenant.max_sessions_per_user),
            )
            if cap is not None
        }
    name, cap = min(caps.items(), key=lambda item: item[1])
    if cap < context.options.jobs and not context.options.quiet:
        console(sys.stderr).print(f"batch: {cap} turns at once instead of {context.options.jobs}, because of {name}")
    return min(cap, context.options.jobs)


def _drive(run: _Run, advance: _Advance) -> bool:
    """Keeps `--jobs` turns running; True when Ctrl-C ended it early."""
    while run.running or (run.waiting and not run.stopping):
        try:
            _fill(run, advance)
            ended, _ = concurrent.futures.wait(
                run.running, timeout=_LOOK_S, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in ended:
                _end(run, run.running.pop(future), future, advance)
            advance.tick()
        except KeyboardInterrupt:
            if run.stopping:
                raise
            run.stopping = True
            for item in run.running.values():
                _cancel(run, item)
    return run.stopping


def _fill(run: _Run, advance: _Advance) -> None:
    while not run.stopping and len(run.running) < run.jobs:
        item = next_ready(run.waiting, {i.session for i in run.running.values() if i.session})
        if item is None:
            return
        run.waiting.remove(item)
        order = run.order(item)
        try:
            run.running[run.context.pool.submit(order, lambda _: None)] = item
        except GovError as error:
            from agentao_gov.pool.turns import refused_report

            _write(run, refused_report(order, error), advance)


def _end(run: _Run, item: BatchItem, future: concurrent.futures.Future[TurnReport], advance: _Advance) -> None:
    try:
        report = future.result()
    except GovError as error:
        from agentao_gov.pool.turns import refused_report

        report = refused_report(run.order(item), error)
    _write(run, report, advance)


def _write(run: _Run, report: TurnReport, advance: _Advance) -> None:
    if run.stopping and report.outcome in INTERRUPTED:
        return
    run.outcomes.append(report.outcome)
    run.out.write(report.for_operator().to_json() + "\n")
    run.out.flush()
    advance.step(report)


def _cancel(run: _Run, item: BatchItem) -> None:
    from agentao_gov.governor.types import SessionKey

    for info in run.context.pool.sessions(run.context.options.tenant):
        if item.session is None or info.key == SessionKey(run.context.options.tenant, item.session):
            run.context.pool.cancel(info.key, "cancelled")


@contextlib.contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        # A new file is private; one that is there, perhaps a device, keeps its mode.
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The output {str(path)!r} cannot be written: {error.strerror}.") from None
    with file:
        yield file


class _Advance:
    """Progress: a bar on a terminal, now and then a line elsewhere, nothing when quiet."""

    def __init__(self, context: RunContext, *, total: int, done: int, bar: Progress | None) -> None:
        self._quiet = context.options.quiet
        self._total = total
        self._done = done
        self._failed = 0
        self._bar = bar
        self._task = bar.add_task("turns", total=total, completed=done) if bar else None
        self._said_at = time.monotonic()

    def step(self, report: TurnReport) -> None:
        """One more turn is written."""
        self._done += 1
        self._failed += report.outcome is not Outcome.ANSWERED
        if self._bar is not None and self._task is not None:
            words = f"turns, {self._failed} failed" if self._failed else "turns"
            self._bar.update(self._task, completed=self._done, description=words)

    def tick(self) -> None:
        """Says something where no bar does."""
        if self._bar is None and not self._quiet and time.monotonic() - self._said_at >= _LINE_EVERY_S:
            self._said_at = time.monotonic()
            sys.stderr.write(f"batch: {self._done} of {self._total} turns, {self._failed} failed\n")


@contextlib.contextmanager
def _progress(context: RunContext, *, total: int, done: int) -> Iterator[_Advance]:
    err = console(sys.stderr)
    if context.options.quiet or not err.file.isatty():
        yield _Advance(context, total=total, done=done, bar=None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as bar:
        yield _Advance(context, total=total, done=done, bar=bar)


def _summary(run: _Run, *, done_before: int, left: int | None) -> None:
    """`left`: turns that an interrupted batch has not answered; None when it came to its end."""
    if run.context.options.quiet:
        return
    counts = Counter(run.outcomes)
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
    words = words or ("no turn has ended" if left else "nothing to do")
    before = f"; {done_before} done before" if done_before else ""
    console(sys.stderr).print(f"batch: {words}{before}")
    if left is not None:
        again = (
            "Run the same command again to go on."
            if run.context.options.output
            else "With --output FILE a batch can be continued."
        )
        console(sys.stderr).print(f"interrupted with {left} turn{'s' * (left != 1)} left. {again}")
