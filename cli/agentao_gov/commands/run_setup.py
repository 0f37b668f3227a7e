"""Sets a `run` up: configuration, model and pool; then hands over to a turn, a conversation or a batch."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentao_gov.batch import BatchItem, read_batch
from agentao_gov.commands._show import check_output
from agentao_gov.commands.run_context import RunContext, RunOptions, allowed_profile
from agentao_gov.config import (
    ResolvedDeployment,
    ResolvedProfile,
    Tenant,
    fit_to_model,
    load_deployment,
    parse_tokens,
    resolve_model,
)
from agentao_gov.config.deployment import TENANT_NAME_RULE, is_tenant_name
from agentao_gov.config.layers import flatten
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.governor.types import SESSION_ID, SESSION_ID_RULE, USER_RULE, is_user_name
from agentao_gov.report.terminal import console, warn
from agentao_gov.simulator.embedded import running_model

if TYPE_CHECKING:
    from agentao_gov.budget import BudgetEvent

#: The command line's own tenant: always allowed.
LOCAL_TENANT = "local"


def run(options: RunOptions) -> int:
    """Everything behind the flags; returns the exit code."""
    _check(options)
    asked = _prompt(options) if options.batch is None else read_batch(options.batch)
    deployment = _deployment(options)
    profile = allowed_profile(options, deployment, options.profile)
    if profile.profile.tools.sandbox == "required":
        from agentao_gov.process.sandbox import find_layers, require_sandbox

        require_sandbox(f'Profile {profile.profile.name} says [tools] sandbox = "required"', find_layers())
    choice = resolve_model(options.model, profile=profile, deployment=deployment)
    note = console()

    def say(line: str) -> None:
        if not options.quiet:
            note.print(line)

    # agentao and the OpenAI SDK take a second to import; a local model's process takes one to start. Both at once.
    threading.Thread(target=import_module, args=("agentao_gov.runtime",), name="import", daemon=True).start()
    with running_model(choice, gguf=options.gguf, on_progress=say) as (model, local):
        profile = fit_to_model(profile, model)
        say(f"model: {model.name} ({model.source})")
        if options.verbose:
            for finding in (*deployment.findings, *profile.findings):
                warn(f"{finding.key}: {finding.message}")
        elif profile.adjustments:
            say(f"lowered to fit: {_lowered(profile)} (-v says why)")
        from agentao_gov.runtime import build_runtime

        with _asking(options) as asker, contextlib.closing(build_runtime(deployment, confirm=asker)) as runtime:
            runtime.ledger.subscribe(_tell_unrecorded)
            # What is there now stays: no collection need look at it again.
            gc.freeze()
            gc.enable()
            context = RunContext(options, deployment, profile, model, local, runtime.pool)
            return _dispatch(context, asked, asker)


def _lowered(profile: ResolvedProfile) -> str:
    """`max_context_tokens 6,553, tool_timeout 10s`."""
    values = dict(flatten(profile.profile.model_dump(by_alias=True)))
    parts = []
    for key in dict.fromkeys(finding.key for finding in profile.findings if finding.adjusted):
        value = values[key]
        parts.append(f"{key.removeprefix('limits.')} {f'{value:,}' if isinstance(value, int) else value}")
    return ", ".join(parts)


def _dispatch(context: RunContext, asked: str | list[BatchItem] | None, asker: Any) -> int:
    """`asked`: one prompt, a batch, or nothing for a conversation."""
    if isinstance(asked, list):
        from agentao_gov.commands.run_batch import run_batch

        return run_batch(context, asked)
    if asked is not None:
        from agentao_gov.commands.run_turn import run_once

        return run_once(context, asked, asker)
    from agentao_gov.commands.run_conversation import converse

    return converse(context, asker)


@contextlib.contextmanager
def _asking(options: RunOptions) -> Iterator[Any]:
    """Somebody to ask whether a tool may run: only where a person sits at a terminal and no machine reads along."""
    from agentao_gov.commands.run_turn import Asker

    person = sys.stdin.isatty() and sys.stderr.isatty() and not options.json and options.batch is None
    yield Asker() if person else None


def _check(options: RunOptions) -> None:
    """Raises UsageError or ConfigError for what makes no sense, alone or together."""
    if options.session is not None and not SESSION_ID.fullmatch(options.session):
        raise UsageError(f"A session id is {SESSION_ID_RULE}.")
    if not is_tenant_name(options.tenant):
        raise UsageError(f"--tenant: {options.tenant!r} cannot be a tenant's name: {TENANT_NAME_RULE}.")
    if options.user is not None and not is_user_name(options.user):
        raise UsageError(f"--user: a user's name is {USER_RULE}.")
    if options.workdir is not None and not options.workdir.is_dir():
        raise ConfigError(f"The working directory {str(options.workdir)!r} does not exist or is no directory.")
    check_output(options.output)
    if options.batch is None:
        return
    if options.prompt is not None:
        raise UsageError("Give a PROMPT or --batch, not both.")
    if options.session is not None:
        raise UsageError(
            "--session has no effect with --batch.", hint='Name the session in the lines: {"prompt", "session"}.'
        )


def _prompt(options: RunOptions) -> str | None:
    """The prompt, from the argument or a pipe; None for a conversation. Raises UsageError."""
    try:
        if options.prompt is not None:
            text = options.prompt
        elif not sys.stdin.isatty():
            text = sys.stdin.read()
        elif options.json:
            raise UsageError("--json needs a PROMPT, or one on standard input.")
        else:
            return None
        # Bytes that are no UTF-8 come through some locales as lone surrogates, which no model can be sent.
        text.encode()
    except UnicodeError as error:
        raise UsageError(
            f"The prompt is not UTF-8 text: {_where(error)}.", hint="iconv converts other texts."
        ) from None
    if not text.strip():
        raise UsageError("The prompt is empty.", hint="Give it as the argument or on standard input.")
    return text


def _where(error: UnicodeError) -> str:
    """`byte 0xe1 at position 3`."""
    if isinstance(error, UnicodeEncodeError):
        # A surrogate stands for a byte, 0xdc00 above it.
        return f"byte {ord(error.object[error.start]) & 0xFF:#04x} at character {error.start}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start]:#04x} at byte {error.start}"
    return str(error)


def _tell_unrecorded(event: BudgetEvent) -> None:
    """Says each time that a step went past the ledger, as the operator chose."""
    from agentao_gov.budget.store import StoreFailureAllowed
    from agentao_gov.report.terminal import warn

    if isinstance(event, StoreFailureAllowed):
        warn(f"{event.operation} let through unrecorded (on_store_failure = allow): {event.error}")


def _deployment(options: RunOptions) -> ResolvedDeployment:
    """The deployment, with `--daily-tokens` as this tenant's own. Raises ConfigError for an unknown tenant."""
    resolved = load_deployment(options.config, overrides=options.overrides)
    plain = resolved.deployment
    entry = plain.tenants.get(options.tenant) or plain.tenants.get("default")
    if entry is None and options.tenant != LOCAL_TENANT:
        known = ", ".join(sorted({*plain.tenants, LOCAL_TENANT}))
        raise ConfigError(
            f"There is no tenant {options.tenant!r}; there are: {known}.",
            hint="Add it with `agentao-gov tenant new`, or add [tenants.default].",
        )
    if options.daily_tokens is None:
        return resolved
    try:
        limit = parse_tokens(options.daily_tokens)
    except ValueError as error:
        raise UsageError(f"--daily-tokens: {error}") from None
    if limit <= 0:
        raise UsageError("--daily-tokens must be above zero.")
    own = (entry or Tenant()).model_copy(update={"daily_tokens": limit})
    tenants = {**plain.tenants, options.tenant: own}
    return replace(
        resolved,
        deployment=plain.model_copy(update={"tenants": tenants}),
        sources={**resolved.sources, f"tenants.{options.tenant}.daily_tokens": "flag --daily-tokens"},
    )
