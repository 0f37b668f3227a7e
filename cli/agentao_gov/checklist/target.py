"""Walks a service that already runs: what can be proved from outside is proved, the rest is skipped with the reason.

Its model cannot be replaced and its clock cannot be turned, so probes ask plain questions, spend little, and look for
refusals. A service that accepts everything fails. Only loopback is walked without the caller's word for it.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from agentao_gov.checklist.client import Answer, ServiceClient
from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.items import Item, ItemId
from agentao_gov.checklist.probe import directive, verdict
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, ChecklistReport, ItemReport, assemble, judge, skipped
from agentao_gov.checklist.runner import Listener
from agentao_gov.checklist.stage import patiently
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.errors import ConfigError, UsageError

__all__ = ["check_target", "walk_target"]

#: Turns at once that a foreign service is asked for, and those spent against its budget: each may cost real tokens.
AT_ONCE = 64
SPENT_TURNS_MAX = 40
SPEND_AT_ONCE = 8
TURN_S_MAX = 180.0
METRIC_S_MAX = 5.0
#: A scripted model answers this late, so that turns overlap.
SLOW = "2s"
OUR_METRICS = ("sessions", "mcp_processes", "process_memory_bytes")
_REFUSAL_CODES = (429, 503)


@dataclass
class _Target:
    """The service, and what the items found out about it."""

    client: ServiceClient
    model: str
    facts: Facts
    listener: Listener
    #: Whether its model obeys scripts, so that it can be made to hang.
    scripted: bool = False
    opened: list[str] = field(default_factory=list)

    def ask(self, session: str, text: str, *, user: str = "checklist", timeout_s: float = TURN_S_MAX) -> Answer:
        """One turn through the OpenAI-compatible interface, which foreign services have as well."""
        body = {"model": self.model, "user": user, "messages": [{"role": "user", "content": text}]}
        self.opened.append(session)
        return self.client.request(
            "POST", "/v1/chat/completions", body, timeout_s=timeout_s, headers={"X-Session-Id": session}
        )

    def ask_many(self, turns: Sequence[tuple[str, str]], text: str) -> list[Answer]:
        """Turns at once, as (session, user)."""
        import threading

        futures: list[Future[Answer]] = []
        for session, user in turns:
            future: Future[Answer] = Future()
            futures.append(future)

            def run(future: Future[Answer] = future, session: str = session, user: str = user) -> None:
                future.set_result(self.ask(session, text, user=user))

            threading.Thread(target=run, daemon=True).start()
        return [future.result(TURN_S_MAX + 10) for future in futures]


def check_target(url: str, *, owned: bool) -> None:
    """Refuses to probe what may be someone else's. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--target {url!r} is not an http or https URL.")
    if not owned and not _loopback(parts.hostname):
        raise UsageError(
            f"--target {parts.hostname} is not this machine.", hint="Add --i-own-this-target if you may probe it."
        )


def walk_target(
    url: str,
    facts: Facts,
    profile: ResolvedProfile,
    chosen: Iterable[tuple[Item, bool]],
    *,
    key_variable: str | None = None,
    owned: bool = False,
    strict: bool = False,
    config: str = "",
    listener: Listener | None = None,
) -> ChecklistReport:
    """Walks the items against a running service with the caller's key, which should be a test tenant's.

    Raises UsageError for a target that is not one's own, ConfigError when nothing usable answers.
    """
    check_target(url, owned=owned)
    listener = listener or Listener()
    began, started_at = time.monotonic(), datetime.now(UTC)
    target = _reach(url, facts, profile, key_variable, listener)
    reports: list[ItemReport] = []
    # Spending a budget shuts the door for everything after it.
    order = sorted(chosen, key=lambda pair: pair[0].id == "daily_token_budget")
    try:
        for item, wanted in order:
            if wanted:
                listener.began(item)
            reports.append(_item(target, item) if wanted else skipped(item, "not asked for"))
            listener.ended(reports[-1])
    finally:
        for session in target.opened:
            target.client.delete(session)
    reports.sort(key=lambda report: report.number)
    return ChecklistReport(
        verdict=judge(reports, strict=strict),
        config=config,
        target=url,
        profile=target.model,
        strict=strict,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        items=tuple(reports),
    )


def _reach(url: str, facts: Facts, profile: ResolvedProfile, key_variable: str | None, listener: Listener) -> _Target:
    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise ConfigError(f"The environment variable {key_variable} is not set.", hint=f"export {key_variable}=...")
    client = ServiceClient(url, key)
    answer = client.request("GET", "/v1/models", timeout_s=10)
    if answer.status == 0:
        raise ConfigError(f"Nothing answers at {url}: {answer.error}", hint="Start the service, or mend the address.")
    if answer.status in (401, 403):
        raise ConfigError(f"{url} refuses the key ({answer.status}).", hint="Give its variable with --api-key-env.")
    rows = answer.body.get("data", []) if isinstance(answer.body, dict) else []
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
    wanted = profile.profile.name
    target = _Target(client, wanted if wanted in names or not names else names[0], facts, listener)
    word = secrets.token_hex(4)
    echo = target.ask(f"chk-{word}", directive("Hello.", text=word))
    target.scripted = echo.status == 200 and _text(echo.body) == word
    return target


def _text(body: Any) -> str:
    try:
        return str(body["choices"][0]["message"]["content"]).strip()
    except (KeyError, IndexError, TypeError):
        return ""


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _item(target: _Target, item: Item) -> ItemReport:
    began = time.monotonic()
    outcome = _PROBES[item.id](target, item)
    if isinstance(outcome, str):
        return skipped(item, outcome)
    return assemble(item, outcome, duration_ms=round((time.monotonic() - began) * 1000))


def _refusals(answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if answer.status in _REFUSAL_CODES]


def _session_caps(target: _Target, item: Item) -> list[Check] | str:
    target.listener.doing(item, f"{AT_ONCE} turns at once")
    tag = secrets.token_hex(4)
    slow = directive("Say one word.", first_token=SLOW) if target.scripted else "Say one word."
    checks = []
    for whose, turns in (
        ("user", [(f"chk-{tag}-a{n}", "checklist-ann") for n in range(AT_ONCE)]),
        ("tenant", [(f"chk-{tag}-b{n}", f"checklist-{n}") for n in range(AT_ONCE)]),
    ):
        answers = target.ask_many(turns, slow)
        refused = _refusals(answers)
        served = sum(answer.status == 200 for answer in answers)
        text = f"{served} served, {len(refused)} refused"
        expected = f"{AT_ONCE} sessions at once for one {whose}: some are refused"
        remedy = Remedy(
            ((("tenants", "default", "max_sessions"), 50), (("tenants", "default", "max_sessions_per_user"), 5))
        )
        checks.append(verdict(bool(refused), expected, text, [str(a) for a in refused[:3]], remedy))
        if refused:
            good = all(answer.retry_after_s for answer in refused)
            checks.append(verdict(good, "refusals say when to come back", str(refused[0])))
    return checks


def _daily_token_budget(target: _Target, item: Item) -> list[Check] | str:
    target.listener.doing(item, f"up to {SPENT_TURNS_MAX} turns of one session and of the tenant")
    tag = secrets.token_hex(4)
    text = directive("Count.", answer_tokens=2000) if target.scripted else "Count from 1 to 300, one number a line."
    answers: list[Answer] = []
    for turn in range(SPENT_TURNS_MAX // SPEND_AT_ONCE):
        turns = [(f"chk-{tag}-{n}", f"checklist-{tag}-{n}") for n in range(SPEND_AT_ONCE)]
        answers = target.ask_many(turns, text)
        target.listener.doing(item, f"{(turn + 1) * SPEND_AT_ONCE} turns")
        if all(answer.code == "budget_exhausted" or _insufficient(answer) for answer in answers):
            break
    spent = [answer for answer in answers if answer.code == "budget_exhausted" or _insufficient(answer)]
    remedy = Remedy((("budget.session_daily_tokens", 300_000), ("budget.tenant_daily_tokens", 5_000_000)))
    checks = [
        verdict(
            bool(spent),
            f"a test tenant's budget ends within {SPENT_TURNS_MAX} turns",
            f"{len(spent)} of the last {len(answers)} turns were refused for the budget",
            [str(answer) for answer in answers[:3]],
            remedy,
        )
    ]
    if spent:
        good = all((answer.retry_after_s or 0) > 0 for answer in spent)
        checks.append(verdict(good, "refusals carry the window's end", str(spent[0])))
    return checks


def _insufficient(answer: Answer) -> bool:
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    return answer.status == 429 and isinstance(error, dict) and error.get("type") == "insufficient_quota"


def _turn_timeout(target: _Target, item: Item) -> list[Check] | str:
    if not target.scripted:
        return "its model cannot be made to hang from outside"
    limit_s = max(p.limits.turn_timeout_s + p.limits.cancel_grace_s for p in target.facts.offered) + 5
    target.listener.doing(item, f"a model that never sends a byte, up to {limit_s:.0f} s")
    answer = target.ask(f"chk-{secrets.token_hex(4)}", directive("Hang.", fault="hang"), timeout_s=limit_s)
    expected = f"a model that never sends a byte: 504 within {limit_s:.0f} s"
    return [verdict(answer.status == 504, expected, f"got {answer}")]


def _max_iterations(target: _Target, item: Item) -> list[Check] | str:
    if not target.scripted:
        return "its model cannot be made to loop from outside"
    cap = max(profile.limits.max_iterations for profile in target.facts.offered)
    target.listener.doing(item, "an endless tool loop")
    tool = {"name": "glob", "args": {"pattern": "*.{round}"}, "rounds": "endless"}
    answer = target.ask(f"chk-{secrets.token_hex(4)}", directive("Loop.", tool=tool))
    rounds = answer.report.get("iterations")
    ended = answer.report.get("outcome") == "max_iterations" and isinstance(rounds, int) and rounds <= cap
    text = f"got {answer}, {rounds} iterations"
    return [verdict(ended, f"an endless tool loop ends after at most {cap} iterations", text)]


def _monitoring(target: _Target, item: Item) -> list[Check] | str:
    target.listener.doing(item, "reading /metrics while sessions open")
    names = {name: f"agentao_gov_{name}" for name in OUR_METRICS} | target.facts.deployment.checklist.metrics
    metrics = target.client.metrics()
    checks = []
    for name in OUR_METRICS:
        there = metrics.get(names[name]) is not None
        checks.append(verdict(there, f"/metrics has {names[name]}", "it is there" if there else "it is missing"))
    before = metrics.get(names["sessions"])
    if before is not None:
        tag = secrets.token_hex(4)
        for n in range(3):
            target.ask(f"chk-{tag}-{n}", "Hello.", user=f"checklist-{tag}-{n}")
        after = before
        for _ in patiently(METRIC_S_MAX):
            after = target.client.metrics().get(names["sessions"]) or 0.0
            if after >= before + 3:
                break
        text = f"from {before:.0f} to {after:.0f}"
        checks.append(verdict(after >= before + 3, f"{names['sessions']} follows three new sessions", text))
    return checks


def _pool_limits(target: _Target, item: Item) -> list[Check] | str:
    del target, item
    return "filling a pool that others use would evict their sessions; run it against your configuration instead"


def _graceful_shutdown(target: _Target, item: Item) -> list[Check] | str:
    del target, item
    return "it would end a service that others use; run it against your configuration instead"


_PROBES: dict[ItemId, Callable[[_Target, Item], list[Check] | str]] = {
    "session_caps": _session_caps,
    "daily_token_budget": _daily_token_budget,
    "turn_timeout": _turn_timeout,
    "max_iterations": _max_iterations,
    "pool_limits": _pool_limits,
    "graceful_shutdown": _graceful_shutdown,
    "monitoring": _monitoring,
}
