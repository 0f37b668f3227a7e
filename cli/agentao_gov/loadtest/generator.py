"""Plays phases of a plan inside the generator's gevent process: sends turns when they are due and writes samples.

Open loop: one greenlet walks the schedule and starts each turn at its intended time, whether or not earlier ones have
come back; a turn whose session is still busy waits for it, and the wait counts in its latency. Closed loop: one
greenlet a session, which pauses between turns. Only the Locust process imports this module.
"""

from __future__ import annotations

import collections
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gevent
from gevent.pool import Pool

from agentao_gov.loadtest.client import TurnClient
from agentao_gov.loadtest.plan import LoadPlan, LoadStream, Phase, SessionDraw, TurnPlan, draw, turns_of
from agentao_gov.loadtest.record import CAPACITY_OUTCOMES, Beat, Begin, ClientResult, TurnSample
from agentao_gov.loadtest.schedule import level_at

_SCHEDSTAT = Path("/proc/self/schedstat")
_LAG_PROBE_S = 0.02
_BEAT_S = 0.25
_BACKOFF_S = 0.25
_DELETE_PARALLEL = 16
_DELETE_S = 15.0


class CpuShare:
    """How much of a core this process uses, and how much more it would use if other programs let it.

    Only for a process of one thread, such as gevent's.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        schedstat: Path = _SCHEDSTAT,
    ) -> None:
        """`clock` and `cpu_clock` give seconds; `schedstat` is the kernel's file of waiting times."""
        self._clock, self._cpu_clock, self._schedstat = clock, cpu_clock, schedstat
        self._at, self._cpu, self._waited = self._now()

    def look(self) -> tuple[float, float]:
        """What was used, and what was waited for: time in which it could have run but another program did."""
        at, cpu, waited = self._now()
        span_s = max(1e-6, at - self._at)
        used, lacked = (cpu - self._cpu) / span_s, (waited - self._waited) / span_s
        self._at, self._cpu, self._waited = at, cpu, waited
        return round(used, 3), round(lacked, 3)

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), self._cpu_clock(), _waited_s(self._schedstat)


def _waited_s(schedstat: Path) -> float:
    """Seconds that the main thread stood in the kernel's run queue; 0 where the kernel does not count them."""
    try:
        handle = os.open(schedstat, os.O_RDONLY)
        try:
            return int(os.read(handle, 128).split()[1]) / 1e9
        finally:
            os.close(handle)
    except (OSError, ValueError, IndexError):
        return 0.0


@dataclass(slots=True)
class _Lane:
    """One session's turns, one at a time. Owned by the event loop: no lock, no yield between test and set."""

    session: SessionDraw
    #: True from the start of a turn to its end.
    busy: bool = False
    #: When the last turn ended, seconds since the phase's start.
    free_s: float = 0.0
    #: Turns that are due but wait for the session.
    waiting: collections.deque[TurnPlan] = field(default_factory=collections.deque)


class LoadGenerator:
    """One worker's share of the load, over all phases of a run: upper bounds count the whole run.

    Session `n` belongs to worker `n mod workers`, whatever the worker count does.
    """

    def __init__(
        self,
        plan: LoadPlan,
        client: TurnClient,
        emit: Callable[[str], None],
        *,
        worker: int = 0,
        on_sample: Callable[[TurnSample], None] = lambda _sample: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            plan: what is sent, by all workers together.
            client: sends it.
            emit: takes the raw record, a line at a time.
            worker: this process's number.
            on_sample: hears each turn's end.
        """
        self._plan = plan
        self._client = client
        self._emit = emit
        self._worker = worker
        self._on_sample = on_sample
        self._phase: Phase | None = None
        self._origin = 0.0
        self._greenlets: set[gevent.Greenlet] = set()
        self._started = 0
        #: Turns booked against the bounds, and tokens: used by those that ended, expected of those in flight.
        self._taken = 0
        self._tokens = 0
        self._in_flight = 0
        self._serial = 0
        self._stopping = False
        self._sessions: dict[str, str] = {}

    def play(self, phase: Phase) -> None:
        """Plays one phase to its end: starts, then waits for what is in flight, then deletes its sessions."""
        self._phase = phase
        self._origin = time.monotonic() + (phase.start_epoch - time.time())
        self._sessions = {}
        beat = gevent.spawn(self._beat)
        players = [
            gevent.spawn(self._play_open if stream.loop == "open" else self._play_closed, stream)
            for stream in phase.streams
        ]
        gevent.joinall(players, raise_error=True)
        self._drain(phase.drain_s)
        if self._plan.delete_sessions and self._plan.api == "native":
            self._delete_sessions()
        beat.kill()
        self._write_beat([])

    def stop(self) -> None:
        """Starts nothing more; what is in flight gets the drain."""
        self._stopping = True

    # -- open loop -----------------------------------------------------------------------------------------------

    def _play_open(self, stream: LoadStream) -> None:
        assert self._phase is not None
        lanes: dict[str, _Lane] = {}
        for turn in turns_of(self._plan, self._phase, stream):
            if turn.session.number % self._plan.workers != self._worker:
                continue
            self._sleep_until(turn.intended_s)
            if not self._take(turn):
                break
            lane = lanes.setdefault(turn.session.id, _Lane(turn.session))
            if lane.busy:
                lane.waiting.append(turn)
            else:
                lane.busy = True
                self._spawn(self._run_lane, lane, turn)
            if turn.index + 1 == len(turn.session.turns):
                lanes.pop(turn.session.id)

    def _run_lane(self, lane: _Lane, turn: TurnPlan) -> None:
        """A turn, and whatever became due meanwhile. When killed, books all of it as unfinished."""
        current: TurnPlan | None = turn
        try:
            while current is not None:
                self._run_turn(current, lane.free_s)
                lane.free_s = self._now_s()
                current = lane.waiting.popleft() if lane.waiting else None
        except gevent.GreenletExit:
            for waiting in lane.waiting:
                self._never_sent(waiting)
        finally:
            lane.busy = False

    def _never_sent(self, turn: TurnPlan) -> None:
        now = self._now_s()
        begin = self._begin(turn, now)
        self._end(turn, begin, ClientResult(outcome="unfinished", error="its session was busy to the end"), late_s=0.0)

    # -- closed loop ---------------------------------------------------------------------------------------------

    def _play_closed(self, stream: LoadStream) -> None:
        assert self._phase is not None
        slots = max(1, int(max(max(part.level_start, part.level_end) for part in stream.segments)))
        rate = stream.spawn_rate or slots / max(0.001, min(10.0, self._phase.duration_s / 10))
        # Sessions are numbered as they are born, so that slow ones do not shift the mix of those that follow.
        births = itertools.count()
        loops = [
            gevent.spawn(self._run_slot, stream, slot, births, slot / rate)
            for slot in range(slots)
            if slot % self._plan.workers == self._worker
        ]
        for loop in loops:
            loop.link_exception(self._broke)
        self._greenlets.update(loops)
        self._sleep_until(self._phase.duration_s)
        # The slots stop by themselves at the end; the drain waits for their last turns.

    def _run_slot(self, stream: LoadStream, slot: int, births: Iterator[int], start_s: float) -> None:
        assert self._phase is not None
        end_s = self._phase.duration_s
        due_s = start_s
        while due_s < end_s and not self._stopping:
            self._sleep_until(due_s)
            number = next(births) * self._plan.workers + self._worker
            session = draw(self._plan, self._phase, stream, number)
            for index in range(len(session.turns)):
                due_s = self._next_active(stream, slot, due_s)
                if due_s >= end_s:
                    return
                self._sleep_until(due_s)
                turn = TurnPlan(due_s, session, index)
                if not self._take(turn):
                    return
                result = self._run_turn(turn, 0.0)
                due_s = self._now_s() + session.turns[index].think_s + _backoff_s(result, self._plan.backoff_s_max)

    def _next_active(self, stream: LoadStream, slot: int, at_s: float) -> float:
        """The first time from `at_s` on at which the shape wants this slot."""
        assert self._phase is not None
        while at_s < self._phase.duration_s and level_at(stream.segments, at_s) <= slot:
            at_s += 0.05
        return at_s

    # -- one turn ------------------------------------------------------------------------------------------------

    def _run_turn(self, turn: TurnPlan, free_s: float) -> ClientResult:
        sent_s = self._now_s()
        begin = self._begin(turn, sent_s)
        session = turn.session
        self._in_flight += 1
        self._sessions[session.id] = session.tenant
        started = time.monotonic()
        try:
            result = self._client.turn(
                session=session.id,
                tenant=session.tenant,
                user=session.user,
                profile=session.profile,
                message=session.message(self._plan, turn.index),
                timeout_s=self._plan.timeout_s(session.profile),
            )
        except gevent.GreenletExit:
            cut = ClientResult(outcome="unfinished", service_us=int((time.monotonic() - started) * 1e6))
            self._end(turn, begin, cut, late_s=sent_s - max(turn.intended_s, free_s))
            raise
        finally:
            self._in_flight -= 1
        self._end(turn, begin, result, late_s=sent_s - max(turn.intended_s, free_s))
        if self._plan.delete_finished and turn.index + 1 == len(session.turns):
            self._delete_soon(session)
        return result

    def _delete_soon(self, session: SessionDraw) -> None:
        """Someone left: the session goes, beside the load and not in its way."""
        if self._plan.api == "native":
            del self._sessions[session.id]
            self._spawn(self._client.delete, session.id, session.tenant)

    def _begin(self, turn: TurnPlan, sent_s: float) -> Begin:
        assert self._phase is not None
        self._serial += 1
        self._started += 1
        session = turn.session
        begin = Begin(
            id=f"{self._phase.index}.{self._worker}.{self._serial}",
            phase=self._phase.index,
            session=session.id,
            profile=session.profile,
            tenant=session.tenant,
            intended_s=round(turn.intended_s, 6),
            sent_s=round(sent_s, 6),
        )
        self._emit(begin.to_line())
        return begin

    def _end(self, turn: TurnPlan, begin: Begin, result: ClientResult, *, late_s: float) -> None:
        sample = TurnSample.of(begin, result, worker=self._worker, late_us=max(0, int(late_s * 1e6)))
        self._tokens += sample.tokens - _expected_tokens(turn)
        self._emit(sample.to_line())
        self._on_sample(sample)

    # -- the end, the clock and the pulse -------------------------------------------------------------------------

    def _drain(self, drain_s: float) -> None:
        gevent.joinall(list(self._greenlets), timeout=drain_s)
        gevent.killall([greenlet for greenlet in self._greenlets if not greenlet.dead])
        self._greenlets.clear()

    def _delete_sessions(self) -> None:
        pool = Pool(_DELETE_PARALLEL)
        jobs = [pool.spawn(self._client.delete, name, tenant) for name, tenant in self._sessions.items()]
        gevent.joinall(jobs, timeout=_DELETE_S)
        pool.kill()

    def _spawn(self, function: Callable[..., object], *args: object) -> None:
        greenlet = gevent.spawn(function, *args)
        self._greenlets.add(greenlet)
        greenlet.link(self._greenlets.discard)
        greenlet.link_exception(self._broke)

    def _broke(self, greenlet: gevent.Greenlet) -> None:
        """A greenlet that died of a defect of ours takes its load with it: the run must not look like a calm one."""
        self._emit(json.dumps({"t": "failed", "reason": f"a session broke: {greenlet.exception!r}"[:300]}))

    def _take(self, turn: TurnPlan) -> bool:
        """Books a turn against the upper bounds before it is sent; False: nothing more may be started.

        Tokens are held as the plan expects them and settled when the turn has ended: turns in flight count too.
        """
        plan = self._plan
        over_turns = plan.max_turns is not None and self._taken >= self._share(plan.max_turns)
        over_tokens = plan.max_tokens is not None and self._tokens >= self._share(plan.max_tokens)
        if (over_turns or over_tokens) and not self._stopping:
            self._stopping = True
            kind = "turns" if over_turns else "tokens"
            self._emit(json.dumps({"t": "bound", "kind": kind, "worker": self._worker}))
        if self._stopping:
            return False
        self._taken += 1
        self._tokens += _expected_tokens(turn)
        return True

    def _share(self, bound: int) -> int:
        """This worker's part of a bound; all parts together are the bound, to the turn."""
        workers = self._plan.workers
        return bound // workers + (self._worker < bound % workers)

    def _now_s(self) -> float:
        return time.monotonic() - self._origin

    def _sleep_until(self, at_s: float) -> None:
        while (left := at_s - self._now_s()) > 0:
            # In pieces, so that a stop is noticed.
            gevent.sleep(min(left, 0.2))
            if self._stopping:
                return

    def _beat(self) -> None:
        lags: list[int] = []
        pulse, last_beat = CpuShare(), time.monotonic()
        while True:
            before = time.monotonic()
            gevent.sleep(_LAG_PROBE_S)
            now = time.monotonic()
            lags.append(max(0, int((now - before - _LAG_PROBE_S) * 1e6)))
            if now - last_beat >= _BEAT_S:
                self._write_beat(lags, *pulse.look())
                lags, last_beat = [], now

    def _write_beat(self, lags: list[int], cpu_ratio: float = 0.0, wait_ratio: float = 0.0) -> None:
        assert self._phase is not None
        at_s = round(self._now_s(), 3)
        beat = Beat(
            self._phase.index,
            self._worker,
            at_s,
            self._in_flight,
            self._started,
            tuple(lags),
            cpu_ratio,
            wait_ratio,
        )
        self._emit(beat.to_line())


def _expected_tokens(turn: TurnPlan) -> int:
    return sum(turn.session.turns[turn.index].expected_tokens(turn.index))


def _backoff_s(result: ClientResult, longest_s: float) -> float:
    """A refused client waits as it was told, within reason; one that cannot connect waits too."""
    if result.outcome in CAPACITY_OUTCOMES or result.outcome in ("connection_error", "model_error"):
        return min(longest_s, max(_BACKOFF_S, result.retry_after_s or 0.0))
    return 0.0
