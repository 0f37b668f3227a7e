"""Turns the user's configuration into the one a probe runs: the same limits, sooner, in a private place.

What an item is about keeps its value, or is scaled down where it would take minutes (each change is recorded). Limits
of *other* items are lifted, so that an item that fails, fails alone.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentao_gov.checklist.facts import Facts
from agentao_gov.checklist.report import Scaled
from agentao_gov.config.profile import Profile
from agentao_gov.config.resolved import ResolvedProfile
from agentao_gov.config.units import format_duration, parse_duration_s

#: A tenant of our own where the configuration has only one.
NEIGHBOUR = "checklist-neighbour"
#: The MCP server that probes add to the profile.
STUB_SERVER = "probe"
_STUB = Path(__file__).with_name("mcp_stub.py")
PLENTY_TOKENS = 1_000_000_000
PLENTY_SESSIONS = 1_000


@dataclass
class ProbeConfig:
    """A deployment and one profile as TOML-ready tables. Build with `of`, change with the methods, then write."""

    deployment: dict[str, Any]
    profile: dict[str, Any]
    #: Plain API keys by tenant: made here, for this run alone.
    keys: dict[str, str]
    tenant: str
    scaled: list[Scaled] = field(default_factory=list)
    #: Processes that `serve` is started with.
    workers: int = 1
    #: Further profiles, which the probed tenants may use as well.
    more_profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Variables that the service is started with besides the caller's.
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Facts, profile: ResolvedProfile) -> ProbeConfig:
        """Starts from the user's values in `facts`, with `profile` as the probed one.

        Keys are replaced, as only their hashes are known.
        """
        deployment = facts.deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
        table = _profile_table(profile.profile)
        deployment.pop("model", None)
        deployment.pop("state", None)
        deployment["server"]["host"] = "127.0.0.1"
        deployment["profiles"] = {"dir": "profiles"}
        tenants: dict[str, Any] = deployment.setdefault("tenants", {})
        for name, tenant in facts.tenants.items():
            tenants.setdefault(name, tenant.model_dump(mode="json", by_alias=True, exclude_none=True))
        primary = _primary(facts, table["name"])
        if len(tenants) == 1:
            tenants[NEIGHBOUR] = copy.deepcopy(tenants[primary])
        keys = {name: f"agk-{secrets.token_hex(16)}" for name in tenants}
        for name, tenant_table in tenants.items():
            tenant_table["api_key_sha256"] = [hashlib.sha256(keys[name].encode()).hexdigest()]
            # The probe's profile must be allowed to whoever is probed.
            if tenant_table.get("profiles") is not None:
                tenant_table["profiles"] = [table["name"]]
        config = cls(deployment, table, keys, primary)
        config._private_ledger(facts)
        return config

    @property
    def profiles(self) -> dict[str, dict[str, Any]]:
        """Every profile of the service by its name."""
        return {self.profile_name: self.profile, **self.more_profiles}

    @property
    def profile_name(self) -> str:
        """The probed profile's name, which turns ask for."""
        return str(self.profile["name"])

    @property
    def neighbour(self) -> str:
        """Another tenant than the probed one."""
        return next(name for name in self.keys if name != self.tenant)

    def get(self, key: str) -> Any:
        """A deployment value by dotted key; None when absent."""
        return _get(self.deployment, key)

    def limit(self, key: str) -> Any:
        """A value of the profile by its dotted `key`; None when absent."""
        return _get(self.profile, key)

    def tenant_limit(self, name: str) -> Any:
        """A value of the probed tenant; None when absent."""
        return self.deployment["tenants"][self.tenant].get(name)

    def scale_tenant(self, name: str, value: Any) -> None:
        """Sets the value of a key, `name`, of the probed tenant, and records it as scaled."""
        table = self.deployment["tenants"][self.tenant]
        if table.get(name) != value:
            key = f"tenants.{self.tenant}.{name}"
            self.scaled.append(Scaled(key=key, configured=_shown(table.get(name)), probed=_shown(value)))
            table[name] = value

    def scale(self, key: str, value: Any, *, profile: bool = False) -> None:
        """Sets another value by its dotted `key` and records it as scaled; `profile`: of the profile."""
        table = self.profile if profile else self.deployment
        before = _get(table, key)
        if before == value:
            return
        _set(table, key, value)
        name = f"profile {self.profile_name}: {key}" if profile else key
        self.scaled.append(Scaled(key=name, configured=_shown(before), probed=_shown(value)))

    def lift(self, key: str, value: Any, *, profile: bool = False) -> None:
        """Sets a limit of another item out of the way, unrecorded; `key`, `value`, `profile` as in `scale`."""
        _set(self.profile if profile else self.deployment, key, value)

    def lift_budgets(self) -> None:
        """Raises every token budget so far that this probe meets none."""
        for key in ("tenant_daily_tokens", "user_daily_tokens", "session_daily_tokens"):
            self.lift(f"budget.{key}", PLENTY_TOKENS)
        for tenant in self.deployment["tenants"].values():
            tenant["daily_tokens"] = PLENTY_TOKENS
        self.lift("limits.turn_tokens", PLENTY_TOKENS, profile=True)

    def lift_caps(self, *, but: str = "") -> None:
        """Raises the session caps of tenants and users so far that this probe meets none, but one tenant's (`but`)."""
        for name, tenant in self.deployment["tenants"].items():
            if name == but:
                continue
            tenant["max_sessions"] = PLENTY_SESSIONS
            tenant["max_sessions_per_user"] = PLENTY_SESSIONS

    def roomy_pool(self, turns: int) -> None:
        """Makes the pool large enough for so many turns at once, and for nobody to leave it meanwhile."""
        self.lift("pool.max_busy", max(turns, int(self.get("pool.max_busy"))))
        self.lift("pool.max_sessions", max(2 * turns, int(self.get("pool.max_sessions"))))
        self.lift("pool.queue_limit", max(turns, int(self.get("pool.queue_limit"))))

    def long_turns(self, seconds: float = 60.0) -> None:
        """Lets turns be held open for so many seconds."""
        configured = parse_duration_s(self.limit("limits.turn_timeout"))
        self.lift("limits.turn_timeout", format_duration(max(seconds, configured)), profile=True)

    def add_stub(self, *, mib: int = 0, request_timeout: str = "5s") -> None:
        """Gives every session an MCP server of its own that starts in no time.

        `mib`: mebibytes of memory that it holds; `request_timeout`: of its tools, as TOML writes durations.
        """
        args = ["-I", "-S", str(_STUB), str(mib)]
        server = {"command": sys.executable, "args": args, "startup_timeout": "20s", "request_timeout": request_timeout}
        self.profile.setdefault("mcp", {})["servers"] = {STUB_SERVER: server}

    def add_profile(self, name: str) -> dict[str, Any]:
        """A copy of the profile as it is now, to be changed."""
        return self._add({**copy.deepcopy(self.profile), "name": name})

    def offer(self, profile: Profile) -> None:
        """Adds another of the user's profiles, without its MCP servers, unless it is the probed one."""
        if profile.name != self.profile_name:
            self._add({**_profile_table(profile), "mcp": {"servers": {}}})

    def _add(self, table: dict[str, Any]) -> dict[str, Any]:
        name = str(table["name"])
        self.more_profiles[name] = table
        for tenant in self.deployment["tenants"].values():
            if tenant.get("profiles") is not None:
                tenant["profiles"].append(name)
        return table

    def drop_servers(self) -> None:
        """Leaves the user's MCP servers out: they may take seconds to start, and this probe is not about them."""
        self.profile["mcp"] = {"servers": {}}

    def _private_ledger(self, facts: Facts) -> None:
        store = facts.deployment.budget.store
        self.lift("budget.path", "ledger.db")
        if store.startswith(("redis", "unix")):
            # Not a row may be left in the user's own ledger.
            self.scaled.append(Scaled(key="budget.store", configured="redis", probed="sqlite (private)"))
            self.lift("budget.store", "sqlite")


def _profile_table(profile: Profile) -> dict[str, Any]:
    """TOML-ready, and without the model: probes bring their own."""
    table: dict[str, Any] = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    table.pop("model", None)
    return table


def _primary(facts: Facts, profile: str) -> str:
    allowed = [name for name, t in facts.tenants.items() if t.profiles is None or profile in t.profiles]
    return (allowed or list(facts.tenants))[0]


def _get(table: dict[str, Any], key: str) -> Any:
    value: Any = table
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    *path, leaf = key.split(".")
    for name in path:
        table = table.setdefault(name, {})
    table[leaf] = value


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)
