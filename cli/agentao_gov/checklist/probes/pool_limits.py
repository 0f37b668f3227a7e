"""Item 5: more sessions than the pool holds, then idleness; who leaves, what leaves with them, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

from agentao_gov.checklist import mcp_stub
from agentao_gov.checklist.probe import Context, HeldTurns, ProbedService, directive
from agentao_gov.checklist.probe_config import ProbeConfig
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.config.units import format_duration, parse_duration_s
from agentao_gov.testrig.client import ServiceClient
from agentao_gov.testrig.guarded import children_of
from agentao_gov.testrig.service import patiently

SESSIONS = 4
TTL_S = 2.0
#: A turn is held for so long past the TTL that a TTL counted from its start would be over at its end.
PAST_TTL_S = 0.5
SECRET = "the word is marzipan"  # noqa: S105 - told to a session, to be found again in its history
_RESIDENT = ("idle", "busy", "opening", "closing")
_LRU, _TTL = Remedy((("pool.max_sessions", 500),)), Remedy((("pool.session_ttl", "30m"),))


def probe_pool_limits(context: Context) -> None:
    """LRU victims were idle, are closed with their MCP children, and come back with their context; the TTL works."""
    if context.facts.deployment.pool.mode == "fresh":
        _nothing_stays(context)
        return
    _full_pool(context)
    _idle_pool(context)


def stubs_below(pid: int) -> set[int]:
    """The probe's MCP servers below a service."""
    found = set()
    for child in children_of(pid):
        try:
            if any(argument.endswith("mcp_stub.py") for argument in child.cmdline()):
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


assert mcp_stub.__file__.endswith("mcp_stub.py")


def _config(context: Context) -> ProbeConfig:
    config = context.config()
    config.lift_budgets()
    config.lift_caps()
    config.long_turns()
    config.add_stub()
    return config


def _resident(client: ServiceClient) -> dict[str, str]:
    """Sessions in memory by their states."""
    states = {name: str(row.get("state")) for name, row in client.sessions().items()}
    return {name: state for name, state in states.items() if state in _RESIDENT}


def _pids(pids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(pids))) or "none"


def _full_pool(context: Context) -> None:
    config = _config(context)
    if int(config.get("pool.max_sessions")) > SESSIONS:
        config.scale("pool.max_sessions", SESSIONS)
    cap = int(config.get("pool.max_sessions"))
    config.lift("pool.max_busy", max(cap, 2))
    # Nobody may leave of idleness while this looks at who leaves for lack of room.
    config.lift("pool.session_ttl", "30m")
    with context.service(config) as service:
        context.say(f"opening {cap + 1} sessions in a pool of {cap}")
        client, profile = service.client(), config.profile_name
        holding = HeldTurns(context.simulator, client, profile)
        if cap > 1:
            # In a pool of one nobody else could come in.
            first = holding.open("busy", "u")
            text = f"got {first}" if first else "held at the model"
            context.note(first is None, "the first session runs a turn", text)
        for n in range(max(1, cap - 1)):
            client.turn(f"idle-{n}", SECRET, profile=profile)
        pid = service.pid
        before = stubs_below(pid)
        extra = client.turn("extra", "Is there room?", profile=profile)
        context.note(extra.answered, "one session more than the pool holds is served", f"got {extra}")
        _after_eviction(context, service, pid, before, cap)
        if cap > 1:
            released = holding.release()
            good = all(answer.answered for answer in released.values())
            context.note(good, "the busy session was not evicted", f"its turn got {released.get('busy')}")
        _context_is_kept(context, client, profile, "idle-0")


def _after_eviction(context: Context, service: ProbedService, pid: int, before: set[int], cap: int) -> None:
    client = service.client()
    resident: dict[str, str] = {}
    gone: set[int] = set()
    for _ in patiently(context.settle_s):
        resident, gone = _resident(client), before - stubs_below(pid)
        if len(resident) <= cap and gone:
            break
    evicted = client.metrics().get("agentao_gov_evictions_total", reason="lru") or 0
    names = ", ".join(f"{name} ({state})" for name, state in sorted(resident.items()))
    evidence = [f"resident: {names}", f"evictions by lru: {evicted:.0f}"]
    context.note(len(resident) <= cap, f"at most {cap} sessions are resident", f"{len(resident)}", evidence, _LRU)
    left = "idle-0" not in resident and (cap == 1 or "busy" in resident)
    context.note(left, "the longest idle session left", f"resident: {names}")
    context.note(
        bool(gone),
        "its MCP server left with it",
        f"{len(gone)} of {len(before)} MCP processes are gone",
        [f"before: {_pids(before)}; gone: {_pids(gone)}"],
    )


def _context_is_kept(context: Context, client: ServiceClient, profile: str, session: str) -> None:
    """The session's next turn must carry its first one to the model."""
    context.say("going on with an evicted session")
    answer = client.turn(session, directive("Which word?", tag=session), profile=profile)
    records = [record for record in context.simulator.truth().requests if record.tag == session]
    # system, question, answer, question: anything less has forgotten.
    messages = max((record.messages for record in records), default=0)
    context.note(
        answer.answered and messages >= 4,
        "an evicted session goes on with its context",
        f"got {answer}, {messages} messages reached the model",
        remedy=Remedy((("pool.hibernate", True),)),
    )


def _idle_pool(context: Context) -> None:
    config = _config(context)
    if parse_duration_s(config.get("pool.session_ttl")) > TTL_S:
        config.scale("pool.session_ttl", format_duration(TTL_S))
    ttl_s = parse_duration_s(config.get("pool.session_ttl"))
    config.roomy_pool(4)
    with context.service(config) as service:
        context.say(f"leaving sessions idle for {ttl_s:g} s")
        client, profile = service.client(), config.profile_name
        holding = HeldTurns(context.simulator, client, profile)
        working = holding.open("working", "u") is None
        began = time.monotonic()
        answers = [client.turn(f"rest-{n}", SECRET, profile=profile) for n in range(2)]
        if working:
            # The turn must be older than the TTL when it ends.
            _until(began + ttl_s + PAST_TTL_S)
            ended = time.monotonic()
            holding.release()
            _stays(context, client, ended, ttl_s)
        all_left = _all_leave(context, service, ttl_s, [answer.answered for answer in answers])
        if all_left:
            _context_is_kept(context, client, profile, "rest-0")


def _until(moment: float) -> None:
    for _ in patiently(moment - time.monotonic()):
        pass


def _stays(context: Context, client: ServiceClient, ended: float, ttl_s: float) -> None:
    """Looks when the session leaves: `ended` is before its turn's end, so a right TTL cannot be over any sooner."""
    stayed_s = 0.0
    for _ in patiently(ttl_s + context.settle_s):
        if "working" not in _resident(client):
            break
        stayed_s = time.monotonic() - ended
    # The last look that found it; the next one may be a loaded machine's second later.
    left_s = time.monotonic() - ended
    text = f"its turn lasted longer than that; afterwards it stayed {stayed_s:.1f} s and left by {left_s:.1f} s"
    context.note(left_s >= ttl_s, f"the {ttl_s:g} s count from the end of a turn", text, remedy=_TTL)


def _all_leave(context: Context, service: ProbedService, ttl_s: float, answered: list[bool]) -> bool:
    client, pid = service.client(), service.pid
    resident, stubs = dict[str, str](), set[int]()
    for _ in patiently(ttl_s + context.settle_s):
        resident, stubs = _resident(client), stubs_below(pid)
        if not resident and not stubs:
            break
    evicted = client.metrics().get("agentao_gov_evictions_total", reason="ttl") or 0
    text = f"{len(resident)} resident, {evicted:.0f} evicted by ttl"
    good = all(answered) and not resident
    context.note(good, f"sessions that are idle for {ttl_s:g} s leave memory", text, remedy=_TTL)
    text = f"{len(stubs)} MCP processes remain"
    context.note(not stubs, "their MCP servers leave with them", text, [f"left: {_pids(stubs)}"] if stubs else [])
    return not resident


def _nothing_stays(context: Context) -> None:
    """Mode `fresh`: every turn has an agent of its own, which is gone with its MCP server when the turn is."""
    config = _config(context)
    config.roomy_pool(SESSIONS)
    with context.service(config) as service:
        context.say("asking in fresh mode")
        client, profile, pid = service.client(), config.profile_name, service.pid
        answers = [client.turn(f"once-{n}", SECRET, profile=profile) for n in range(SESSIONS)]
        good = all(answer.answered for answer in answers)
        context.note(good, "turns are answered", f"the last got {answers[-1]}", answers)
        resident, stubs = dict[str, str](), set[int]()
        for _ in patiently(context.settle_s):
            resident, stubs = _resident(client), stubs_below(pid)
            if not resident and not stubs:
                break
        text = f"{len(resident)} resident, {len(stubs)} MCP processes"
        context.note(not resident and not stubs, "no agent and no MCP server outlives its turn", text)
        _context_is_kept(context, client, profile, "once-0")
