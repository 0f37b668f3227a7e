"""What one `run` knows: its command line, and the configuration, model and pool that a turn of it needs."""

from __future__ import annotations

import getpass
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentao_gov.config import (
    ModelChoice,
    ModelFlags,
    Overrides,
    ResolvedDeployment,
    ResolvedProfile,
    fit_to_model,
    load_profile,
    resolve_model,
)
from agentao_gov.config.profile import ToolRule
from agentao_gov.errors import ProfileNotAllowedError, UsageError
from agentao_gov.governor.types import SessionKey
from agentao_gov.simulator.embedded import LocalModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentao_gov.pool import AgentPool, TurnOrder

#: Under which limits a turn runs, and which model answers it.
Agent = tuple[ResolvedProfile, ModelChoice]
_SHELL = "run_shell_command"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command line of `run`, parsed."""

    prompt: str | None
    profile: str
    config: Path | None
    tenant: str
    user: str | None
    session: str | None
    workdir: Path | None
    model: ModelFlags
    gguf: Path | None
    #: What the command line says about the configuration.
    overrides: Overrides
    daily_tokens: str | None
    #: Patterns of shell commands that need no consent.
    allow: tuple[str, ...]
    batch: str | None
    jobs: int
    output: Path | None
    json: bool
    stream: bool
    quiet: bool
    verbose: bool


@dataclass(slots=True)
class RunContext:
    """What a turn of this command needs."""

    options: RunOptions
    deployment: ResolvedDeployment
    profile: ResolvedProfile
    model: ModelChoice
    local: LocalModel
    pool: AgentPool

    @property
    def user(self) -> str:
        """Whose budget counts."""
        return self.options.user or _login_name()

    def load_agent(self, name: str, start: Callable[[ModelChoice], ModelChoice]) -> Agent:
        """Another profile under the same flags, with the model that it asks for: a batch's lines name theirs.

        `name`: the profile's. `start` gives a local model that does not run yet its address. Raises ConfigError,
        ProfileNotAllowedError, and what `start` raises.
        """
        profile = allowed_profile(self.options, self.deployment, name)
        choice = resolve_model(self.options.model, profile=profile, deployment=self.deployment)
        model = choice if choice.kind == "remote" else start(choice)
        return fit_to_model(profile, model), model

    def order(
        self, message: str, *, session: str | None, agent: Agent | None = None, id: str | int | None = None
    ) -> TurnOrder:
        """A turn of a session; without one, of an agent that leaves nothing behind. `agent`: None for the run's own."""
        from agentao_gov.pool import TurnOrder

        profile, model = agent or (self.profile, self.model)
        return TurnOrder(
            key=SessionKey(self.options.tenant, session or f"once-{uuid.uuid4().hex[:12]}"),
            user=self.user,
            profile=profile,
            model=model,
            message=message,
            turn_id=uuid.uuid4().hex,
            mode=self.deployment.deployment.pool.mode,
            id=id,
            keep=session is not None,
            workdir=self.options.workdir.absolute() if self.options.workdir else None,
        )


def allowed_profile(options: RunOptions, deployment: ResolvedDeployment, name: str) -> ResolvedProfile:
    """A profile that the tenant may use."""
    tenants = deployment.deployment.tenants
    entry = tenants.get(options.tenant) or tenants.get("default")
    resolved = load_profile(name, deployment=deployment, overrides=options.overrides)
    allowed = entry.profiles if entry is not None else None
    if allowed is not None and resolved.profile.name not in allowed:
        raise ProfileNotAllowedError(
            f"Tenant {options.tenant!r} may not use the profile {resolved.profile.name!r}.",
            hint=f"It may use: {', '.join(allowed) or 'none'}.",
        )
    return _with_allowed(resolved, options.allow) if options.allow else resolved


def _with_allowed(resolved: ResolvedProfile, patterns: tuple[str, ...]) -> ResolvedProfile:
    """The profile with a rule for each `--allow` before its own: flags go before files."""
    tools = resolved.profile.tools
    if _SHELL not in tools.allow:
        raise UsageError(
            f"--allow {patterns[0]!r}: the profile {resolved.profile.name!r} has no shell commands.",
            hint=f"Choose one whose [tools] allow has {_SHELL!r}, such as -p code.",
        )
    if not all(pattern.strip() for pattern in patterns):
        raise UsageError("--allow: an empty pattern matches no command.", hint="Write one like 'pytest *'.")
    rules = [ToolRule(tool=_SHELL, when={"command": pattern}, action="allow") for pattern in patterns]
    changed = tools.model_copy(update={"rules": [*rules, *tools.rules]})
    return replace(
        resolved,
        profile=resolved.profile.model_copy(update={"tools": changed}),
        sources={**resolved.sources, "tools.rules": "flag --allow"},
    )


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a passwd entry
        return "user"
