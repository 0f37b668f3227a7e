"""Item 5: more sessions than the pool holds, then idleness; who leaves, what leaves with them, and what comes back."""

from __future__ import annotations

import psutil

from agentao_gov.checklist import mcp_stub
from agentao_gov.checklist.holding import Holding
from agentao_gov.checklist.probe import Context, directive
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.checklist.stage import Stage, children_of, patiently
from agentao_gov.config.units import format_duration, parse_duration_s

__all__ = ["probe_pool_limits", "stubs_below"]

SESSIONS = 4
TTL_S = 2.0
SECRET = "the word is marzipan"  # noqa: S105 - told to a session, to be found again in its history


def probe_pool_limits(context: Context) -> None:
    """LRU victims were idle, are closed with their MCP children, and come back with their context; the TTL works."""
    if context.facts.deployment.pool.mode == "fresh":
        context.note(True, "nothing stays resident", 'mode = "fresh": each turn has an agent of its own')
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


def _full_pool(context: Context) -> None:
    config = _config(context)
    if int(config.get("pool.max_sessions")) > SESSIONS:
        config.scale("pool.max_sessions", SESSIONS)
    cap = int(config.get("pool.max_sessions"))
    config.lift("pool.max_busy", max(cap, 2))
    # Nobody may leave of idleness while this looks at who leaves for lack of room.
    config.lift("pool.session_ttl", "30m")
    with context.stage(config) as stage:
        context.say(f"opening {cap + 1} sessions in a pool of {cap}")
        client, profile = stage.client(), config.profile_name
        holding = Holding(context.simulator, client, profile)
        first = holding.open("busy", "u")
        context.note(first is None, "the first session runs a turn", f"got {first}" if first else "held at the model")
        for n in range(cap - 1):
            client.turn(f"idle-{n}", SECRET, profile=profile)
        pid = stage.pid
        before = stubs_below(pid)
        extra = client.turn("extra", "Is there room?", profile=profile)
        _after_eviction(context, stage, pid, before, extra_answered=extra.answered, cap=cap)
        released = holding.release()
        good = all(answer.answered for answer in released.values())
        context.note(good, "the busy session was not evicted", f"its turn got {released.get('busy')}")
        if cap > 1:
            _context_is_kept(context, stage)


def _after_eviction(
    context: Context, stage: Stage, pid: int, before: set[int], *, extra_answered: bool, cap: int
) -> None:
    context.note(extra_answered, "one session more than the pool holds is served", str(extra_answered).lower())
    resident: list[str] = []
    gone: set[int] = set()
    for _ in patiently(context.settle_s):
        states = {name: row.get("state") for name, row in stage.client().sessions().items()}
        resident = sorted(name for name, state in states.items() if state in ("idle", "busy", "opening", "closing"))
        gone = before - stubs_below(pid)
        if len(resident) <= cap and gone:
            break
    evicted = stage.client().metrics().get("agentao_gov_evictions_total", reason="lru") or 0
    evidence = [f"resident: {', '.join(resident)}", f"evictions by lru: {evidence_number(evicted)}"]
    remedy = Remedy((("pool.max_sessions", 500),))
    context.note(len(resident) <= cap, f"at most {cap} sessions are resident", f"{len(resident)}", evidence, remedy)
    if cap > 1:
        victim_ok = "idle-0" not in resident and "busy" in resident
        context.note(victim_ok, "the longest idle session left", f"resident: {', '.join(resident)}")
        context.note(bool(gone), "its MCP server left with it", f"{len(gone)} of {len(before)} MCP processes are gone")


def evidence_number(value: float) -> str:
    """A count without its decimal point."""
    return f"{value:.0f}"


def _context_is_kept(context: Context, stage: Stage) -> None:
    """The victim's next turn must carry its first one to the model."""
    context.say("going on with an evicted session")
    answer = stage.client().turn("idle-0", directive("Which word?", tag="return"), profile=stage.config.profile_name)
    records = [record for record in context.simulator.truth().requests if record.tag == "return"]
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
    with context.stage(config) as stage:
        context.say(f"leaving sessions idle for {ttl_s:g} s")
        client, profile = stage.client(), config.profile_name
        answers = [client.turn(f"rest-{n}", "Rest.", profile=profile) for n in range(2)]
        pid = stage.pid
        resident, stubs = -1, set[int]()
        for _ in patiently(ttl_s + context.settle_s):
            pool = client.status().get("pool") or {}
            resident, stubs = int(pool.get("resident", -1)), stubs_below(pid)
            if resident == 0 and not stubs:
                break
        evicted = client.metrics().get("agentao_gov_evictions_total", reason="ttl") or 0
        context.note(
            all(answer.answered for answer in answers) and resident == 0,
            f"sessions that are idle for {ttl_s:g} s leave memory",
            f"{resident} resident, {evidence_number(evicted)} evicted by ttl",
            remedy=Remedy((("pool.session_ttl", "30m"),)),
        )
        context.note(not stubs, "their MCP servers leave with them", f"{len(stubs)} MCP processes remain")
