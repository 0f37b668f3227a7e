"""Findings that need no experiment: limits that are missing, that contradict each other, or that never bind.

Each function looks at one item. A limit that is absent fails (absent means unlimited); a value that is possible but
outside what the mission's tables recommend warns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.items import ItemId
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, Status
from agentao_gov.config.checks import ITERATIONS, TURN_TIMEOUT_S
from agentao_gov.config.model import context_cap, known_model
from agentao_gov.config.profile import Profile
from agentao_gov.config.units import format_duration

MIB = 2**20
#: Above this a number is a way of writing "unlimited".
ABSURD_SESSIONS = 100_000
ABSURD_TOKENS = 1_000_000_000
#: A session that stays longer is a leak with a name; one that leaves sooner never sees its second question.
TTL_S_MIN, TTL_S_MAX = 30.0, 24 * 3600.0
#: Measured: a session in the pool's process with its context full, one in a process of its own, an MCP server.
SESSION_BYTES = {"in-process": 1 * MIB, "fresh": 1 * MIB, "subprocess": 65 * MIB}
MCP_BYTES = 60 * MIB
#: What orchestrators leave between SIGTERM and SIGKILL unless told otherwise.
ORCHESTRATOR_S = 30.0
#: A first call costs about 2,500 tokens with four tools, but what is reserved for it is an upper bound: for a model
#: whose tokenizer is not known one token a byte, 13,500 with the profile `qa`. Below that no call may be admitted.
SMALLEST_CALL_TOKENS = 14_000
#: A value this many times outside its recommended range fails instead of warning.
ABSURD_FACTOR = 10.0


def static_checks(facts: Facts) -> dict[ItemId, list[Check]]:
    """All static findings, by item."""
    return {item: list(look(facts)) for item, look in _LOOKS.items()}


def _check(ok: bool, expected: str, observed: str, remedy: Remedy | None = None, *, bad: Status = "fail") -> Check:
    return Check("pass" if ok else bad, expected, observed, remedy=None if ok else remedy)


def _session_caps(facts: Facts) -> Iterator[Check]:
    pool = facts.deployment.pool
    for name, tenant in facts.tenants.items():
        caps = {"max_sessions": tenant.max_sessions, "max_sessions_per_user": tenant.max_sessions_per_user}
        missing = [key for key, value in caps.items() if value is None]
        suggested = {"max_sessions": min(50, pool.max_sessions), "max_sessions_per_user": min(5, pool.max_sessions)}
        yield _check(
            not missing,
            f"tenant {name}: caps on sessions, per tenant and per user",
            f"no {' and no '.join(missing)}: unlimited" if missing else _figures(caps),
            Remedy(tuple((("tenants", name, key), suggested[key]) for key in missing)),
        )
        if tenant.max_sessions is not None and tenant.max_sessions > pool.max_sessions:
            absurd = tenant.max_sessions > ABSURD_SESSIONS
            yield Check(
                "fail" if absurd else "warn",
                f"tenant {name}: a cap that the pool can reach",
                f"max_sessions = {tenant.max_sessions:,} above the pool's {pool.max_sessions:,} never refuses",
                remedy=Remedy(((("tenants", name, "max_sessions"), pool.max_sessions),)),
            )
        per_user = tenant.max_sessions_per_user
        if per_user is not None and tenant.max_sessions is not None and per_user > tenant.max_sessions:
            yield Check(
                "warn",
                f"tenant {name}: a cap per user below the tenant's",
                f"max_sessions_per_user = {per_user:,} above max_sessions = {tenant.max_sessions:,}: "
                "one user can take it all",
                remedy=Remedy(((("tenants", name, "max_sessions_per_user"), max(1, tenant.max_sessions // 4)),)),
            )
    if not facts.open_door and "default" not in facts.deployment.tenants:
        yield Check("pass", "tenants that are not listed", "are refused: there is no [tenants.default]")


def _budgets(facts: Facts) -> Iterator[Check]:
    budget = facts.deployment.budget
    tenant_limits = {name: t.daily_tokens or budget.tenant_daily_tokens for name, t in facts.tenants.items()}
    daily = {
        "budget.session_daily_tokens": (budget.session_daily_tokens, 300_000),
        "budget.user_daily_tokens": (budget.user_daily_tokens, 1_000_000),
    }
    for key, (limit, suggested) in daily.items():
        yield _budget_line(key, limit, suggested)
    for name, limit in tenant_limits.items():
        key = "budget.tenant_daily_tokens" if limit is None else f"tenants.{name}.daily_tokens"
        yield _budget_line(key, limit, 5_000_000, whose=f"tenant {name}: ")
    smallest = min((value for value in tenant_limits.values() if value is not None), default=None)
    session = budget.session_daily_tokens
    if session is not None and smallest is not None and session > smallest:
        yield Check(
            "warn",
            "a session's budget within its tenant's",
            f"session_daily_tokens = {session:,} above {smallest:,}: it never binds",
            remedy=Remedy((("budget.session_daily_tokens", smallest),)),
        )
    if budget.on_store_failure == "allow":
        yield Check(
            "warn",
            "no call without a ledger",
            'on_store_failure = "allow": without its store the budget is not held',
            remedy=Remedy((("budget.on_store_failure", "refuse"),)),
        )
    if budget.store == "memory":
        yield Check(
            "warn",
            "a ledger that outlives a restart",
            'store = "memory": a restart opens every budget again',
            remedy=Remedy((("budget.store", "sqlite"),)),
        )
    if facts.state_dir is not None and budget.store == "sqlite":
        held = next((path for path in (facts.state_dir, *facts.state_dir.parents) if path.exists()), Path("/"))
        yield _check(
            os.access(held, os.W_OK | os.X_OK),
            "the ledger's place can be written",
            str(facts.state_dir),
            Remedy((("state.dir", "~/.local/state/agentao-gov"),), f"or give the service's user {held}"),
            bad="warn",
        )
    for profile in facts.offered:
        yield from _context_cap(profile, facts)


def _budget_line(key: str, limit: int | None, suggested: int, *, whose: str = "") -> Check:
    expected = f"{whose}{key} is set"
    if limit is None:
        return Check("fail", expected, "absent: unlimited", remedy=Remedy(((key, suggested),)))
    if limit < SMALLEST_CALL_TOKENS:
        text = f"{limit:,} tokens may admit no call: up to {SMALLEST_CALL_TOKENS:,} are reserved for the first one"
        return Check("fail", expected, text, remedy=Remedy(((key, suggested),)))
    return _check(
        limit <= ABSURD_TOKENS,
        expected,
        f"{limit:,} tokens a day" + (" is no limit" if limit > ABSURD_TOKENS else ""),
        Remedy(((key, suggested),)),
        bad="warn",
    )


def _context_cap(profile: Profile, facts: Facts) -> Iterator[Check]:
    model = profile.model or facts.deployment.model
    known = known_model(model.name) if model and model.name else None
    window = (model.context_window if model else None) or (known.window if known else None)
    if window is None:
        return
    cap = context_cap(window)
    used = profile.limits.max_context_tokens
    yield _check(
        used <= cap,
        f"profile {profile.name}: context cap at most 80 % of the model's window",
        f"{used:,} of {window:,}",
        Remedy((("limits.max_context_tokens", cap),), file=f"profile {profile.name}"),
    )


def _turn_timeouts(facts: Facts) -> Iterator[Check]:
    for profile in facts.offered:
        limits, file = profile.limits, f"profile {profile.name}"
        low, high = TURN_TIMEOUT_S[profile.tier]
        yield _in_range(
            f"profile {profile.name}: turn_timeout fits tier {profile.tier} "
            f"({format_duration(low)}-{format_duration(high)})",
            limits.turn_timeout_s,
            (low, high),
            format_duration(limits.turn_timeout_s),
            Remedy(
                (("limits.turn_timeout", format_duration(90.0 if profile.tier == "interactive" else low)),), file=file
            ),
        )
        tools = {"tool_timeout": limits.tool_timeout_s, **limits.tool_timeouts_s}
        slow = {name: seconds for name, seconds in tools.items() if seconds >= limits.turn_timeout_s}
        yield _check(
            not slow,
            f"profile {profile.name}: tools end before the turn does",
            _figures({name: format_duration(seconds) for name, seconds in (slow or tools).items()}),
            Remedy((("limits.tool_timeout", format_duration(max(0.1, limits.turn_timeout_s / 4))),), file=file),
            bad="warn",
        )


def _in_range(expected: str, value: float, span: tuple[float, float], shown: str, remedy: Remedy) -> Check:
    low, high = span
    if low <= value <= high:
        return Check("pass", expected, shown)
    absurd = value > high * ABSURD_FACTOR or value < low / ABSURD_FACTOR
    return Check("fail" if absurd else "warn", expected, f"{shown} is outside", remedy=remedy)


def _iterations(facts: Facts) -> Iterator[Check]:
    for profile in facts.offered:
        low, high = ITERATIONS[profile.task]
        file = f"profile {profile.name}"
        yield _in_range(
            f"profile {profile.name}: max_iterations fits task {profile.task} ({low}-{high})",
            profile.limits.max_iterations,
            (low, high),
            str(profile.limits.max_iterations),
            Remedy((("limits.max_iterations", (low + high) // 2),), file=file),
        )
        fallback = profile.on_limit.max_iterations
        yield _check(
            fallback == "wrap_up",
            f"profile {profile.name}: a fallback when the cap is hit",
            f'on_limit.max_iterations = "{fallback}"',
            Remedy((("on_limit.max_iterations", "wrap_up"),), file=file),
            bad="warn",
        )


def _pool(facts: Facts) -> Iterator[Check]:
    pool = facts.deployment.pool
    yield _check(
        TTL_S_MIN <= pool.session_ttl_s <= TTL_S_MAX,
        f"session_ttl between {format_duration(TTL_S_MIN)} and {format_duration(TTL_S_MAX)}",
        format_duration(pool.session_ttl_s),
        Remedy((("pool.session_ttl", "30m"),)),
        bad="warn",
    )
    yield _check(
        pool.hibernate,
        "an evicted session keeps its context",
        f"hibernate = {str(pool.hibernate).lower()}",
        Remedy((("pool.hibernate", True),)),
    )
    needed = _memory_bytes_needed(facts)
    fits = facts.memory_bytes // max(1, needed // pool.max_sessions)
    yield _check(
        needed <= facts.memory_bytes,
        "max_sessions fits this machine's memory",
        f"{pool.max_sessions:,} sessions of mode {pool.mode} need about {needed / MIB:,.0f} MiB of "
        f"{facts.memory_bytes / MIB:,.0f} MiB",
        Remedy((("pool.max_sessions", max(1, int(fits * 0.8))),)),
        bad="fail" if needed > ABSURD_FACTOR * facts.memory_bytes else "warn",
    )
    if pool.max_busy > pool.max_sessions:
        yield Check(
            "warn",
            "max_busy at most max_sessions",
            f"{pool.max_busy:,} turns at once never run in {pool.max_sessions:,} sessions",
            remedy=Remedy((("pool.max_busy", pool.max_sessions),)),
        )


def _memory_bytes_needed(facts: Facts) -> int:
    pool = facts.deployment.pool
    own = max((sum(s.share == "session" for s in p.mcp.servers.values()) for p in facts.offered), default=0)
    return int(pool.max_sessions * (SESSION_BYTES[pool.mode] + own * MCP_BYTES))


def _shutdown(facts: Facts) -> Iterator[Check]:
    server, ladder = facts.deployment.server, facts.deployment.shutdown
    total_s = ladder.total_s
    yield _check(
        total_s <= server.shutdown_budget_s,
        "the ladder's rungs fit shutdown_budget",
        f"{format_duration(total_s)} of {format_duration(server.shutdown_budget_s)}",
        Remedy((("server.shutdown_budget", format_duration(total_s)),)),
    )
    yield _check(
        server.shutdown_budget_s < ORCHESTRATOR_S,
        f"shutdown_budget below the {ORCHESTRATOR_S:.0f} s an orchestrator waits",
        format_duration(server.shutdown_budget_s),
        Remedy((("server.shutdown_budget", "25s"),), "or raise terminationGracePeriodSeconds above it"),
        bad="warn",
    )
    rungs: tuple[tuple[str, float, str, str, Status], ...] = (
        ("drain", ladder.drain_s, "turns in flight get time to finish", "12s", "fail"),
        ("cancel", ladder.cancel_s, "cancelled turns get time to end", "4s", "warn"),
        ("close", ladder.close_s, "MCP servers get time to close", "6s", "warn"),
    )
    for name, seconds, expected, suggested, bad in rungs:
        remedy = Remedy(((f"shutdown.{name}", suggested),))
        yield _check(seconds > 0, expected, f"{name} = {format_duration(seconds)}", remedy, bad=bad)


def _monitoring(facts: Facts) -> Iterator[Check]:
    plan, pool = facts.deployment.capacity, facts.deployment.pool
    suggested: dict[str, Any] = {"sessions": pool.max_sessions, "mcp_processes": 30, "memory": "5GiB"}
    values = {"sessions": plan.sessions, "mcp_processes": plan.mcp_processes, "memory": plan.memory_bytes}
    for key, value in values.items():
        yield _check(
            value is not None,
            f"capacity.{key} is planned",
            "absent: nothing alerts on it" if value is None else f"{value:,}",
            Remedy(((f"capacity.{key}", suggested[key]),), "`agentao-gov plan --write` measures the values"),
        )
    if plan.sessions is not None:
        yield _check(
            plan.sessions * plan.alert_at <= pool.max_sessions,
            "the session alert can be reached",
            f"line at {plan.sessions * plan.alert_at:,.0f} of at most {pool.max_sessions:,} sessions",
            Remedy((("capacity.sessions", pool.max_sessions),)),
        )
    if plan.memory_bytes is not None:
        yield _check(
            plan.memory_bytes <= facts.memory_bytes,
            "the planned memory exists",
            f"{plan.memory_bytes / MIB:,.0f} MiB of this machine's {facts.memory_bytes / MIB:,.0f} MiB",
            Remedy((("capacity.memory", f"{int(facts.memory_bytes * 0.8 / MIB)}MiB"),)),
        )
    yield _check(
        0.5 <= plan.alert_at <= 0.95,
        "alert_at leaves time to act",
        f"{plan.alert_at:g}",
        Remedy((("capacity.alert_at", 0.85),)),
        bad="warn",
    )


def _isolation(facts: Facts) -> Iterator[Check]:
    for profile in facts.offered:
        has_shell = "run_shell_command" in profile.tools.allow
        yield _check(
            not has_shell or profile.tools.sandbox != "off",
            f"profile {profile.name}: shell commands run in a sandbox",
            f'sandbox = "{profile.tools.sandbox}"' if has_shell else "it offers no shell",
            Remedy((("tools.sandbox", "auto"),), file=f"profile {profile.name}"),
            bad="warn",
        )


def _figures(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


_LOOKS: dict[ItemId, Callable[[Facts], Iterator[Check]]] = {
    "session_caps": _session_caps,
    "daily_token_budget": _budgets,
    "turn_timeout": _turn_timeouts,
    "max_iterations": _iterations,
    "pool_limits": _pool,
    "graceful_shutdown": _shutdown,
    "monitoring": _monitoring,
    "tenant_isolation": _isolation,
}
