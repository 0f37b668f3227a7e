"""The deployment file `agentao-gov.toml` (`contract.md`, "Deployment")."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator

from agentao_gov.config.profile import Count, ModelSettings, PositiveBytes, PositiveDuration, PositiveTokens, Settings
from agentao_gov.config.units import Duration

TENANT_NAME_RULE = "use up to 64 letters, digits, '.', '_' and '-', with no '.' in front"


def is_tenant_name(name: str) -> bool:
    """Whether a tenant may be called so. The name becomes part of ledger keys and paths: no separators."""
    plain = all(character.isalnum() or character in "._-" for character in name)
    return 0 < len(name) <= 64 and plain and not name.startswith(".")


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{name!r} is not an IANA time zone such as UTC or Asia/Shanghai") from None
    return name


def _known_store(name: str) -> str:
    # The address may hold a password, so it is not repeated.
    if name not in {"sqlite", "memory"} and not name.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be sqlite, memory or an address like redis://HOST:PORT/DB")
    return name


#: The same words as `governor.outcome.Mode`, which stands a floor above.
Mode = Literal["fresh", "in-process", "subprocess"]
TimeZone = Annotated[str, AfterValidator(_known_zone)]
Share = Annotated[float, Field(gt=0, le=1)]


class Server(Settings):
    """`[server]`: the HTTP listener."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    # Under the 30 s that Kubernetes and systemd units usually leave between SIGTERM and SIGKILL.
    shutdown_budget_s: PositiveDuration = Field(default=25.0, alias="shutdown_budget")
    # A conversation without a session id is sent whole, so a body may hold several of the largest messages.
    max_body_bytes: PositiveBytes = Field(default=4 * 1024**2, alias="max_body")
    max_message_bytes: PositiveBytes = Field(default=1024**2, alias="max_message")
    metrics: Literal["open", "admin"] = Field(
        default="open", description="Who may read /metrics, which names tenants: anybody, or who has the admin key."
    )
    # Each costs some 20 KiB. Half of the process's descriptors are the limit where that is less.
    max_connections: Count = Field(default=10_000, description="Open connections, each worker's.")
    # Far past any context window; 2,000 of them take some milliseconds to read.
    max_messages: Count = Field(default=2_000, description="Messages of one request.")


class Shutdown(Settings):
    """`[shutdown]`: the rungs of the ladder, in order; together at most `server.shutdown_budget`."""

    lame_duck_s: Duration = Field(default=2.0, alias="lame_duck")
    drain_s: Duration = Field(default=12.0, alias="drain")
    cancel_s: Duration = Field(default=4.0, alias="cancel")
    close_s: Duration = Field(default=6.0, alias="close")
    kill_s: Duration = Field(default=1.0, alias="kill")

    @property
    def total_s(self) -> float:
        """The whole ladder."""
        return self.lame_duck_s + self.drain_s + self.cancel_s + self.close_s + self.kill_s


class Pool(Settings):
    """`[pool]`: how many sessions, where they live, how long."""

    mode: Mode = "in-process"
    max_sessions: Count = Field(default=500, description="Resident sessions: a limit on memory.")
    max_busy: Count = Field(default=64, description="Turns running at once: a limit on threads and on the model.")
    session_ttl_s: PositiveDuration = Field(
        default=1800.0, alias="session_ttl", description="Idle time after which a session leaves memory."
    )
    queue_limit: Annotated[int, Field(ge=0)] = Field(default=128, description="Waiting turns, all tenants.")
    queue_timeout_s: PositiveDuration = Field(default=10.0, alias="queue_timeout")
    hibernate: bool = Field(default=True, description="Whether an evicted session goes on from disk.")
    retain_hibernated_s: PositiveDuration = Field(default=7 * 86400.0, alias="retain_hibernated")
    session_memory_bytes: PositiveBytes | None = Field(
        default=None, alias="session_memory", description="Memory limit of a session process (subprocess mode)."
    )
    # A build or a test suite runs some dozens of processes; a fork bomb passes this within milliseconds.
    session_processes: Count | None = Field(
        default=256, description="Processes below one session process (subprocess mode)."
    )
    session_cpu_s: PositiveDuration | None = Field(
        default=None, alias="session_cpu", description="Processor time of each process of a session (subprocess mode)."
    )
    session_files: Count | None = Field(
        default=1024, description="Open files of each process of a session (subprocess mode)."
    )
    session_file_bytes: PositiveBytes | None = Field(
        default=1024**3, alias="session_file_size", description="Largest file a session may write (subprocess mode)."
    )
    # Off: pids that tools and MCP servers write down would mean nothing outside their session.
    session_pid_namespace: bool = Field(
        default=False,
        description="A process namespace per session: its tools cannot see or signal others (subprocess mode).",
    )
    # Two openings at once find a process waiting; each costs some 15 MiB until a session takes it.
    ready_workers: Annotated[int, Field(ge=0)] = Field(
        default=2, description="Session processes kept ready (subprocess mode)."
    )
    max_opening: Count | None = Field(default=None, description="Sessions opened at once; absent: one per core.")
    # Each stuck turn keeps a thread and a slot for ever; past a few of them a restart is the cure.
    max_stuck: Count = Field(default=8, description="Abandoned turns after which the service reports not ready.")
    max_stuck_per_tenant: Count | None = Field(
        default=None,
        description="Abandoned turns after which a tenant's are refused; absent: half of max_stuck.",
    )


class Budget(Settings):
    """`[budget]`: the ledger, and daily limits. An absent limit is unlimited."""

    store: Annotated[str, AfterValidator(_known_store)] = "sqlite"
    path: Annotated[str, Field(min_length=1)] = "ledger.db"
    timezone: TimeZone = "UTC"
    tenant_daily_tokens: PositiveTokens | None = None
    user_daily_tokens: PositiveTokens | None = None
    session_daily_tokens: PositiveTokens | None = None
    warn_at: list[Share] = Field(default=[0.8, 0.95])
    on_store_failure: Literal["refuse", "allow"] = "refuse"
    #: A table of model prices that adds to the shipped one, relative to the deployment file.
    prices: Annotated[str, Field(min_length=1)] | None = None
    # Less than two days would reach into windows that are open somewhere on earth.
    retain_journal_s: Annotated[Duration, Field(ge=2 * 86400.0)] = Field(
        default=30 * 86400.0,
        alias="retain_journal",
        description="How long single calls, turns, and the days of users and sessions stay in the ledger; at least 2d.",
    )


KeyHashes = list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


class Admin(Settings):
    """`[admin]`: who may see every tenant's part."""

    api_key_sha256: KeyHashes = Field(default=[])


class Tenant(Settings):
    """`[tenants.NAME]`: one customer, or `default` for those who are not listed."""

    api_key_sha256: KeyHashes = Field(default=[])
    max_sessions: Count | None = None
    max_sessions_per_user: Count | None = None
    daily_tokens: PositiveTokens | None = None
    timezone: TimeZone | None = None
    profiles: list[str] | None = None
    python: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Python of this tenant's session processes, for other dependencies (subprocess mode)."
    )


class State(Settings):
    """`[state]`: where everything that lasts is kept."""

    dir: Annotated[str, Field(min_length=1)] = "~/.local/state/agentao-gov"


class Capacity(Settings):
    """`[capacity]`: what this machine is meant to hold; alerts are raised at `alert_at` of it."""

    sessions: Count | None = None
    mcp_processes: Annotated[int, Field(ge=0)] | None = None
    memory_bytes: PositiveBytes | None = Field(default=None, alias="memory")
    alert_at: Share = 0.85


class ProfilesDir(Settings):
    """`[profiles]`: where this deployment's own profiles are, relative to the file."""

    dir: Annotated[str, Field(min_length=1)] = "profiles"


class LoadTest(Settings):
    """`[loadtest]`: thresholds that hold for every load test of this deployment."""

    thresholds: list[str] = Field(default=[])


class Checklist(Settings):
    """`[checklist]`: what `checklist --target` needs to know of a service that is not ours."""

    metrics: dict[str, str] = Field(
        default={},
        description="Its names for our metrics: sessions, mcp_processes, process_memory_bytes.",
    )


class Deployment(Settings):
    """The whole file. Every table is optional."""

    server: Server = Server()
    shutdown: Shutdown = Shutdown()
    pool: Pool = Pool()
    budget: Budget = Budget()
    admin: Admin = Admin()
    tenants: dict[str, Tenant] = Field(default={})
    state: State = State()
    model: ModelSettings | None = None
    capacity: Capacity = Capacity()
    profiles: ProfilesDir = ProfilesDir()
    loadtest: LoadTest = LoadTest()
    checklist: Checklist = Checklist()

    @field_validator("tenants")
    @classmethod
    def _names(cls, tenants: dict[str, Tenant]) -> dict[str, Tenant]:
        for name in tenants:
            if not is_tenant_name(name):
                raise ValueError(f"{name!r} cannot be a tenant's name: {TENANT_NAME_RULE}")
        return tenants
