"""Walks a service that already runs: what can be proved from outside is proved, the rest is skipped with the reason.

Only loopback is walked without the caller's word for it.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from agentao_gov.checklist.client import Answer, ServiceClient
from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.foreign import PROBES, Foreign
from agentao_gov.checklist.items import Item
from agentao_gov.checklist.probe import directive
from agentao_gov.checklist.report import ChecklistReport, ItemReport, assemble, judge, skipped
from agentao_gov.checklist.runner import Listener
from agentao_gov.config.load_deployment import is_loopback
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.governor.redact import redact

__all__ = ["check_target", "walk_target"]

#: How long the first plain turn may take; a service that is slower cannot be walked in minutes.
FIRST_TURN_S_MAX = 60.0
#: How long removing a probe's session may take before the rest is left to the service's own idle time-out.
DELETE_S_MAX = 5.0


def check_target(url: str, *, owned: bool) -> None:
    """Refuses to probe what may be someone else's. Raises UsageError."""
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


def _reach(url: str, facts: Facts, profile: ResolvedProfile, key_variable: str | None, listener: Listener) -> Foreign:
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
    rows = answer.body.get("data", []) if isinstance(answer.body, dict) else []
    names = [str(row.get("id")) for row in rows if isinstance(row, dict)]
    wanted = profile.profile.name
    name = wanted if wanted in names or not names else names[0]
    target = Foreign(client, name, facts, listener, tenant=_tenant(facts, key))
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


def _not_html(answer: Answer, url: str) -> None:
    if "html" in answer.headers.get("content-type", "").lower():
        hint = "Give the base address of the service, as a client of OpenAI's interface would use it."
        raise ConfigError(f"{url} answers HTML ({answer.status}): this is no OpenAI-compatible service.", hint=hint)


def _text(answer: Answer) -> str:
    try:
        return str(answer.body["choices"][0]["message"]["content"]).strip()
    except (KeyError, IndexError, TypeError):
        return ""


def _remove(target: Foreign) -> None:
    """Takes the probes' sessions away again, as long as the service answers."""
    for session in dict.fromkeys(target.opened):
        if target.client.request("DELETE", f"/v1/sessions/{session}", timeout_s=DELETE_S_MAX).status == 0:
            return


def _item(target: Foreign, item: Item) -> ItemReport:
    began = time.monotonic()
    outcome = PROBES[item.id](target, item)
    if isinstance(outcome, str):
        return skipped(item, outcome)
    return assemble(item, outcome, duration_ms=round((time.monotonic() - began) * 1000))
