"""The items as far as they can be proved on a service of which only the address is known.

Its model cannot be replaced and its clock cannot be turned, so probes ask plain questions, spend little, and look for
refusals. A service that accepts everything fails, and so does one that refuses everything.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import psutil

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.items import Item, ItemId
from agentao_gov.checklist.probe import directive, verdict
from agentao_gov.checklist.remedy import Remedy
from agentao_gov.checklist.report import Check, ChecklistReport, ItemReport, assemble, judge, skipped
from agentao_gov.checklist.runner import Listener
from agentao_gov.config.deployment import Tenant
from agentao_gov.config.load_deployment import is_loopback
from agentao_gov.config.profile import Profile
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.config.units import format_duration
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.governor.report import redact
from agentao_gov.testrig.client import HttpAnswer, ServiceClient, in_background
from agentao_gov.testrig.service import patiently

#: Turns at once that a foreign service is asked for, and those spent against its budget: each may cost real tokens.
AT_ONCE = 64
SPENT_TURNS_MAX = 40
SPEND_AT_ONCE = 4
#: What those turns spend at most: a prompt of 3,000 tokens and an answer of 2,000 each.
SPENT_TOKENS_MAX = SPENT_TURNS_MAX * 5_000
#: Longer than this nobody waits for a turn of a probe.
TURN_S_MAX = 150.0
METRIC_S_MAX = 5.0
#: A scripted model answers this late, so that turns overlap.
SLOW = "2s"
OUR_METRICS = ("sessions", "mcp_processes", "process_memory_bytes")
#: Its memory by its own account and by /proc: a look is up to a second old.
MEMORY_TOLERANCE = 0.25
_REFUSAL_CODES = (429, 503)
_UNSERVED = Remedy(
    note="Give the key of a test tenant with budget left (--api-key-env), and a profile it may use (--profile); "
    "a plain turn must end within a minute"
)
#: How long the first plain turn may take; a service that is slower cannot be walked in minutes.
FIRST_TURN_S_MAX = 60.0
#: How long removing a probe's session may take before the rest is left to the service's own idle time-out.
DELETE_S_MAX = 5.0


@dataclass
class ProbedTarget:
    """The service that is walked, and what is known of it."""

    client: ServiceClient
    #: What it is asked for as `model`.
    profile: str
    facts: Facts
    listener: Listener
    #: Whose key is used, where the configuration knows it.
    tenant: str | None = None
    #: What the first plain turn got.
    first: HttpAnswer = field(default_factory=lambda: HttpAnswer(0))
    #: Whether its model obeys scripts, so that it can be made to hang.
    scripted: bool = False
    opened: list[str] = field(default_factory=list)

    @property
    def limits(self) -> Tenant:
        """What the configuration grants the tenant; empty where it does not know it."""
        return self.facts.tenants.get(self.tenant or "", Tenant())

    @property
    def known_profile(self) -> Profile | None:
        """The configuration's profile of the same name."""
        return next((profile for profile in self.facts.offered if profile.name == self.profile), None)

    def ask(self, session: str, text: str, *, user: str = "checklist", timeout_s: float = TURN_S_MAX) -> HttpAnswer:
        """One turn of `session` through the OpenAI-compatible interface, which foreign services have as well.

        `text`: the question; `user`: whose it is; `timeout_s`: for each read.
        """
        self.opened.append(session)
        return self.client.turn(session, text, profile=self.profile, user=user, timeout_s=timeout_s, door="chat")

    def ask_many(self, turns: Sequence[tuple[str, str]], text: str) -> list[HttpAnswer]:
        """Asks the same `text` in all `turns` at once, each a (session, user)."""
        futures = [in_background(self.ask, session, text, user=user) for session, user in turns]
        return [future.result(TURN_S_MAX + 10) for future in futures]


def _serves(target: ProbedTarget) -> Check | None:
    """A service that answers nothing proves no limit by its refusals; None when it served the first turn."""
    if target.first.status == 200:
        return None
    return verdict(False, "a plain turn of the test tenant is served", f"got {target.first}", (), _UNSERVED)


def _session_caps(target: ProbedTarget, item: Item) -> list[Check] | str:
    if unserved := _serves(target):
        return [unserved]
    limits, checks, too_high = target.limits, list[Check](), list[str]()
    for whose, cap in (("user", limits.max_sessions_per_user), ("tenant", limits.max_sessions)):
        if cap is not None and cap >= AT_ONCE:
            too_high.append(f"{cap:,} per {whose}")
            continue
        tries = AT_ONCE if cap is None else min(AT_ONCE, 2 * cap + 2)
        target.listener.doing(item, f"{tries} turns at once for one {whose}")
        checks += _cap(target, whose, cap, tries)
    if not checks:
        return f"to meet caps of {' and '.join(too_high)} takes more than {AT_ONCE} turns at once; use a test tenant"
    return checks


def _cap(target: ProbedTarget, whose: str, cap: int | None, tries: int) -> list[Check]:
    tag = secrets.token_hex(4)
    slow = directive("Say one word.", first_token=SLOW) if target.scripted else "Say one word."
    turns = [(f"chk-{tag}-{n}", "checklist-ann" if whose == "user" else f"checklist-{tag}-{n}") for n in range(tries)]
    answers = target.ask_many(turns, slow)
    refused = [answer for answer in answers if answer.status in _REFUSAL_CODES]
    served = sum(answer.status == 200 for answer in answers)
    key = "max_sessions_per_user" if whose == "user" else "max_sessions"
    remedy = Remedy(((("tenants", target.tenant or "default", key), 5 if whose == "user" else 50),))
    odd = [answer for answer in answers if answer.status not in (200, *_REFUSAL_CODES)]
    expected = f"{tries} sessions at once for one {whose}: some are served, the rest is refused"
    text = f"{served} served, {len(refused)} refused, {len(odd)} other"
    evidence = [str(answer) for answer in (*refused[:3], *odd[:3])]
    checks = [verdict(bool(refused) and served > 0 and not odd, expected, text, evidence, remedy)]
    if cap is not None and target.scripted:
        checks.append(verdict(served <= cap, f"at most {cap} at once for one {whose}", f"{served} served"))
    if refused:
        mute = [answer for answer in refused if not answer.retry_after_s]
        text = f"{len(refused) - len(mute)} of {len(refused)} do; one got {(mute or refused)[0]}"
        checks.append(verdict(not mute, f"the {whose}'s refusals say when to come back", text))
    return checks


def _daily_token_budget(target: ProbedTarget, item: Item) -> list[Check] | str:
    if unserved := _serves(target):
        return [unserved]
    limit = target.limits.daily_tokens or (
        target.facts.deployment.budget.tenant_daily_tokens if target.tenant is not None else None
    )
    if limit is not None and limit > SPENT_TOKENS_MAX:
        return (
            f"the tenant's budget of {limit:,} tokens is more than the {SPENT_TOKENS_MAX:,} that are spent here; "
            "give the key of a test tenant with less"
        )
    tag = secrets.token_hex(4)
    text = directive("Count.", answer_tokens=2000) if target.scripted else "Count from 1 to 300, one number a line."
    answers: list[HttpAnswer] = []
    served = 0
    for turn in range(SPENT_TURNS_MAX // SPEND_AT_ONCE):
        target.listener.doing(item, f"{(turn + 1) * SPEND_AT_ONCE} of {SPENT_TURNS_MAX} turns")
        turns = [(f"chk-{tag}-{n}", f"checklist-{tag}-{n}") for n in range(SPEND_AT_ONCE)]
        answers = target.ask_many(turns, text)
        served += sum(answer.status == 200 for answer in answers)
        if all(map(_exhausted, answers)):
            break
    return _judge_budget(answers, served)


def _judge_budget(answers: Sequence[HttpAnswer], served: int) -> list[Check]:
    spent = [answer for answer in answers if _exhausted(answer)]
    remedy = Remedy((("budget.session_daily_tokens", 300_000), ("budget.tenant_daily_tokens", 5_000_000)))
    checks = [
        verdict(
            len(spent) == len(answers) and served > 0,
            f"a test tenant's budget ends within {SPENT_TURNS_MAX} turns",
            f"{served} turns were served; {len(spent)} of the last {len(answers)} were refused for the budget",
            [str(answer) for answer in answers[:3]],
            remedy,
        )
    ]
    if spent:
        good = all((answer.retry_after_s or 0) > 0 for answer in spent)
        checks.append(verdict(good, "refusals carry the window's end", str(spent[0])))
    return checks


def _exhausted(answer: HttpAnswer) -> bool:
    error = answer.body.get("error") if isinstance(answer.body, dict) else None
    typed = isinstance(error, dict) and error.get("type") == "insufficient_quota"
    return answer.status == 429 and (answer.code == "budget_exhausted" or typed)


def _turn_timeout(target: ProbedTarget, item: Item) -> list[Check] | str:
    if unserved := _serves(target):
        return [unserved]
    if not target.scripted:
        return "its model cannot be made to hang from outside"
    known = target.known_profile
    limit_s = known.limits.turn_timeout_s + known.limits.cancel_grace_s + 5 if known else TURN_S_MAX
    if limit_s > TURN_S_MAX:
        return f"a turn_timeout of {format_duration(limit_s)} is too long to wait for; name a shorter one by --profile"
    target.listener.doing(item, f"a model that never sends a byte, up to {limit_s:.0f} s")
    answer = target.ask(f"chk-{secrets.token_hex(4)}", directive("Hang.", fault="hang"), timeout_s=limit_s)
    expected = f"a model that never sends a byte: 504 within {limit_s:.0f} s"
    return [verdict(answer.status == 504, expected, f"got {answer}")]


def _max_iterations(target: ProbedTarget, item: Item) -> list[Check] | str:
    if unserved := _serves(target):
        return [unserved]
    if not target.scripted:
        return "its model cannot be made to loop from outside"
    known = target.known_profile
    if known is None:
        return f"the configuration has no profile {target.profile!r}, so nobody knows its cap"
    cap = known.limits.max_iterations
    target.listener.doing(item, "an endless tool loop")
    tool = {"name": "glob", "args": {"pattern": "*.{round}"}, "rounds": "endless"}
    answer = target.ask(f"chk-{secrets.token_hex(4)}", directive("Loop.", tool=tool))
    rounds = answer.report.get("iterations")
    ended = answer.report.get("outcome") == "max_iterations" and isinstance(rounds, int) and rounds <= cap
    text = f"got {answer}, {rounds} iterations"
    return [verdict(ended, f"an endless tool loop ends after at most {cap} iterations", text)]


def _monitoring(target: ProbedTarget, item: Item) -> list[Check] | str:
    target.listener.doing(item, "reading /metrics while sessions open")
    names = {name: f"agentao_gov_{name}" for name in OUR_METRICS} | target.facts.deployment.checklist.metrics
    metrics = target.client.metrics()
    checks = []
    for name in OUR_METRICS:
        there = metrics.get(names[name]) is not None
        note = f"Its own name for it goes into the configuration: [checklist] metrics.{name}"
        text = "it is there" if there else "it is missing"
        checks.append(verdict(there, f"/metrics has {names[name]}", text, (), Remedy(note=note)))
    if (before := metrics.get(names["sessions"])) is not None and target.first.status == 200:
        checks.append(_follows(target, names["sessions"], before))
    return [*checks, *_memory(target, names["process_memory_bytes"], metrics.get(names["process_memory_bytes"]))]


def _memory(target: ProbedTarget, name: str, said: float | None) -> list[Check]:
    """Compares the metric with what the kernel says of the very process that the service names, if it is here."""
    pids = target.client.serving_pids()
    if said is None:
        return []
    try:
        true = int(psutil.Process(pids[0]).memory_info().rss) if pids and len(pids) == 1 else None
    except psutil.Error:
        true = None
    if true is None:
        why = "it does not say which process serves" if pids is None else "its process is not on this machine"
        return [Check("skip", f"{name} is true", f"not seen: {'several processes serve' if pids else why}")]
    text = f"metric {said / 2**20:.0f} MiB, /proc {true / 2**20:.0f} MiB"
    return [verdict(abs(said - true) <= MEMORY_TOLERANCE * true, f"{name} is true", text)]


def _follows(target: ProbedTarget, name: str, before: float) -> Check:
    tag = secrets.token_hex(4)
    for n in range(3):
        target.ask(f"chk-{tag}-{n}", "Hello.", user=f"checklist-{tag}-{n}")
    after = before
    for _ in patiently(METRIC_S_MAX):
        after = target.client.metrics().get(name) or 0.0
        if after >= before + 3:
            break
    return verdict(after >= before + 3, f"{name} follows three new sessions", f"from {before:.0f} to {after:.0f}")


def _pool_limits(target: ProbedTarget, item: Item) -> list[Check] | str:
    del target, item
    return "filling a pool that others use would evict their sessions; run it against your configuration instead"


def _graceful_shutdown(target: ProbedTarget, item: Item) -> list[Check] | str:
    del target, item
    return "it would end a service that others use; run it against your configuration instead"


def _tenant_isolation(target: ProbedTarget, item: Item) -> list[Check] | str:
    del target, item
    return "nothing may be planted in a service that others use; run it against your configuration instead"


PROBES: Mapping[ItemId, Callable[[ProbedTarget, Item], list[Check] | str]] = {
    "session_caps": _session_caps,
    "daily_token_budget": _daily_token_budget,
    "turn_timeout": _turn_timeout,
    "max_iterations": _max_iterations,
    "pool_limits": _pool_limits,
    "graceful_shutdown": _graceful_shutdown,
    "monitoring": _monitoring,
    "tenant_isolation": _tenant_isolation,
}


def check_target(url: str, *, owned: bool) -> None:
    """Refuses to probe what may be someone else's: a `url` not on loopback, unless it is `owned`. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--target {url!r} is not an http or https URL.")
    if not owned and not is_loopback(parts.hostname):
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

    Args:
        url: where it listens.
        facts: what is known of its configuration.
        profile: what turns ask for, if the service offers it.
        chosen: every item with whether it is to be tried.
        key_variable: the environment variable that holds the key.
        owned: the caller's word that the target may be probed.
        strict: a warning fails.
        config: how the report names the configuration.
        listener: hears how it goes.

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
        _remove(target)
    reports.sort(key=lambda report: report.number)
    return ChecklistReport(
        verdict=judge(reports, strict=strict),
        config=config,
        target=redact(url),
        profile=target.profile,
        strict=strict,
        started_at=started_at,
        duration_ms=round((time.monotonic() - began) * 1000),
        items=tuple(reports),
    )


def _reach(
    url: str, facts: Facts, profile: ResolvedProfile, key_variable: str | None, listener: Listener
) -> ProbedTarget:
    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise ConfigError(f"The environment variable {key_variable} is not set.", hint=f"export {key_variable}=...")
    client, shown = ServiceClient(url, key), redact(url)
    answer = client.request("GET", "/v1/models", timeout_s=10)
    if answer.status == 0:
        raise ConfigError(f"Nothing answers at {shown}: {answer.error}", hint="Start the service, or mend the address.")
    if answer.status in (401, 403):
        raise ConfigError(f"{shown} refuses the key ({answer.status}).", hint="Give its variable with --api-key-env.")
    _not_html(answer, shown)
    names = [str(row.get("id")) for row in answer.rows]
    wanted = profile.profile.name
    name = wanted if wanted in names or not names else names[0]
    target = ProbedTarget(client, name, facts, listener, tenant=_tenant(facts, key))
    word = secrets.token_hex(4)
    target.first = target.ask(f"chk-{word}", directive("Hello.", text=word), timeout_s=FIRST_TURN_S_MAX)
    _not_html(target.first, shown)
    target.scripted = target.first.status == 200 and _text(target.first) == word
    return target


def _tenant(facts: Facts, key: str | None) -> str | None:
    """Whose key it is, by the configuration; None where that does not know it."""
    if key is None:
        return "default" if facts.open_door else None
    digest = hashlib.sha256(key.encode()).hexdigest()
    return next((name for name, tenant in facts.tenants.items() if digest in tenant.api_key_sha256), None)


def _not_html(answer: HttpAnswer, url: str) -> None:
    if answer.is_html:
        hint = "Give the base address of the service, as a client of OpenAI's interface would use it."
        raise ConfigError(f"{url} answers HTML ({answer.status}): this is no OpenAI-compatible service.", hint=hint)


def _text(answer: HttpAnswer) -> str:
    try:
        return str(answer.body["choices"][0]["message"]["content"]).strip()
    except (KeyError, IndexError, TypeError):
        return ""


def _remove(target: ProbedTarget) -> None:
    """Takes the probes' sessions away again, as long as the service answers."""
    for session in dict.fromkeys(target.opened):
        if target.client.request("DELETE", f"/v1/sessions/{session}", timeout_s=DELETE_S_MAX).status == 0:
            return


def _item(target: ProbedTarget, item: Item) -> ItemReport:
    began = time.monotonic()
    outcome = PROBES[item.id](target, item)
    if isinstance(outcome, str):
        return skipped(item, outcome)
    return assemble(item, outcome, duration_ms=round((time.monotonic() - began) * 1000))
