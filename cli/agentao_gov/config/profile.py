"""A profile: the limits, tools and model of one task type (`contract.md`, "Profiles")."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentao_gov.config.units import ByteSize, Duration, Tokens

# ── what all configuration models share ───────────────────────────────────────────────────────────


class Settings(BaseModel):
    """A table of a configuration file. Attributes carry units (`turn_timeout_s`); the alias is the TOML key."""

    # Strict: `max_iterations = true` and `"25"` are mistakes, not numbers.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True
    )


PositiveDuration = Annotated[Duration, Field(gt=0)]
PositiveTokens = Annotated[Tokens, Field(gt=0)]
PositiveBytes = Annotated[ByteSize, Field(gt=0)]
#: At least one of something.
Count = Annotated[int, Field(ge=1)]


# ── the tables ────────────────────────────────────────────────────────────────────────────────────

Task = Literal["qa", "code", "research", "custom"]
Tier = Literal["interactive", "background", "batch"]


class Limits(Settings):
    """`[limits]`: what one turn may use."""

    max_context_tokens: PositiveTokens = Field(
        default=64_000, description="Past this the history is summarised. Leave 20 % of the model's window."
    )
    max_output_tokens: PositiveTokens = Field(default=4_096, description="Output of one LLM call.")
    max_iterations: Count = Field(default=25, description="LLM calls per turn.")
    turn_timeout_s: PositiveDuration = Field(default=90.0, alias="turn_timeout", description="Time limit of a turn.")
    cancel_grace_s: PositiveDuration = Field(
        default=2.0, alias="cancel_grace", description="From the deadline to the end of the turn, whatever hangs."
    )
    tool_timeout_s: PositiveDuration = Field(
        default=20.0, alias="tool_timeout", description="Time limit of every tool call."
    )
    tool_timeouts_s: dict[str, PositiveDuration] = Field(
        default={}, alias="tool_timeouts", description="Time limits by tool name."
    )
    turn_tokens: PositiveTokens = Field(default=100_000, description="Token budget of a turn, prompt + completion.")
    llm_retries: Annotated[int, Field(ge=0)] = Field(default=2, description="Retries of a failed LLM call.")


class OnLimit(Settings):
    """`[on_limit]`: what happens at a cap."""

    max_iterations: Literal["wrap_up", "stop"] = Field(
        default="wrap_up", description="wrap_up: one last call without tools asks for the best answer so far."
    )


class ToolRule(Settings):
    """`[[tools.rules]]`: what becomes of the calls it matches."""

    tool: Annotated[str, Field(min_length=1)] = Field(
        description="Shell pattern over the tool's name; an MCP server's tool is mcp_SERVER_TOOL."
    )
    when: dict[str, str] = Field(
        default={}, description="Shell patterns over arguments, by name; all must match. None: every call."
    )
    action: Literal["allow", "ask", "deny"]


class Tools(Settings):
    """`[tools]`: what the agent may do."""

    permission_mode: Literal["read-only", "workspace-write", "full-access"] = "read-only"
    allow: list[str] = Field(
        default=["read_file", "glob", "search_file_content", "list_directory"],
        description="Names of the built-in and custom tools it may call.",
    )
    sub_agents: bool = Field(default=False, description="Whether it may start sub-agents; metered like the rest.")
    sandbox: Literal["auto", "required", "off"] = Field(
        default="auto",
        description="Shell commands see and touch the session's directory alone. auto: they are refused where no "
        "sandbox can be had | required: the profile does not load there | off",
    )
    network: bool = Field(default=False, description="Whether sandboxed commands reach the network.")
    readable: list[str] = Field(
        default=[],
        description="Further directories that sandboxed commands may read, absolute or from ~: tools outside of /usr.",
    )
    rules: list[ToolRule] = Field(
        default=[], description="Judge a call before permission_mode does; the first that matches decides."
    )


class McpServer(Settings):
    """`[mcp.servers.NAME]`: one MCP server over stdio. Both time limits always hold."""

    command: Annotated[str, Field(min_length=1)]
    args: list[str] = Field(default=[])
    env: dict[str, str] = Field(default={})
    cwd: str | None = None
    startup_timeout_s: PositiveDuration = Field(default=10.0, alias="startup_timeout")
    request_timeout_s: PositiveDuration | None = Field(
        default=None, alias="request_timeout", description="Limit of a call; absent: `[limits] tool_timeout`."
    )
    share: Literal["session", "tenant", "process"] = Field(
        default="session", description="Who shares one server process. It costs 50-200 MB each."
    )
    sandbox: bool = Field(
        default=False,
        description="Whether it runs in the sandbox of shell commands; it may also read its own program and what its "
        "arguments name.",
    )


class Mcp(Settings):
    """`[mcp]`."""

    servers: dict[str, McpServer] = Field(default={})


ApiFormat = Literal["openai-completions", "anthropic-messages", "openai-responses"]


class ModelSettings(Settings):
    """`[model]`: a model at an endpoint. `embedded` and `simulated` need nothing else."""

    name: str | None = None
    base_url: str | None = None
    api_format: ApiFormat | None = Field(
        default=None, description="How the endpoint is spoken to; absent: openai-completions."
    )
    api_key_env: str | None = Field(default=None, description="Name of the environment variable that holds the key.")
    context_window: PositiveTokens | None = Field(default=None, description="Window of a model that is not known.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=None, description="Absent: the provider's default."
    )
    thinking: Annotated[str, Field(pattern=r"^[A-Za-z]+$")] | None = Field(
        default=None, description='How much it thinks: "low", "medium", "high", or what the model knows; "off".'
    )
    headers: dict[str, str] = Field(
        default={},
        description="Sent with each request, with the deployment's where base_url is the deployment's, too; ${VAR} "
        "comes from the environment.",
    )
    extra_body: dict[str, Any] = Field(default={}, description="Goes into each request as it is.")


class Profile(Settings):
    """A task type. `name` defaults to the file's name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    description: str = ""
    task: Task = "custom"
    tier: Tier = "interactive"
    limits: Limits = Limits()
    on_limit: OnLimit = OnLimit()
    tools: Tools = Tools()
    mcp: Mcp = Mcp()
    model: ModelSettings | None = None
