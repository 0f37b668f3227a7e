"""The shapes of the JSON that the service answers with: endpoints are typed by them, `openapi.py` publishes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema

# Before Python 3.12 pydantic takes no other TypedDict.
from typing_extensions import TypedDict

from agentao_gov.governor.report import BudgetLine, TurnReport


class _DumpOf:
    """Marks a dict that was dumped from a model: its schema is the model's."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self._model)


BudgetJson = Annotated[dict[str, Any], _DumpOf(BudgetLine)]
ReportJson = Annotated[dict[str, Any], _DumpOf(TurnReport)]


class Model(TypedDict):
    """A profile that the tenant may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    description: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]


class UsageSum(TypedDict):
    """Of all the session's turns."""

    turns: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    llm_calls: int


class Session(TypedDict):
    """A session as its owner sees it. Times are seconds since the epoch; None is not known, or not measured yet."""

    id: str
    object: Literal["session"]
    state: str
    user: str
    profile: str
    mode: str
    model: str
    created_at: float
    last_turn_at: float | None
    idle_s: float | None
    turn_id: str | None
    waiting: int
    memory_bytes: int | None
    processes: dict[str, int] | None
    usage: UsageSum


class SessionList(TypedDict):
    """A page of the tenant's sessions; `last_id` is where the next one goes on, `total` how many there are in all."""

    object: Literal["list"]
    data: list[Session]
    has_more: bool
    last_id: str | None
    total: int


class Cancelled(TypedDict):
    id: str
    object: Literal["session"]
    cancelled: bool


class Deleted(TypedDict):
    id: str
    object: Literal["session.deleted"]
    deleted: bool


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(TypedDict):
    index: int
    message: AssistantMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(TypedDict):
    """OpenAI's completion, with the TurnReport beside it."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: dict[str, Any]
    agentao_gov: ReportJson


class Health(TypedDict):
    alive: bool


class Readiness(TypedDict):
    ready: bool
    rung: str
    not_ready_because: list[str]


class Instance(TypedDict):
    """The process that answers; `pids` are all workers', and mean something where `host` is the reader's own."""

    version: str
    pid: int
    host: str
    worker: int
    workers: int
    uptime_s: float
    profiles: list[str]
    pids: NotRequired[list[int]]


class RungState(TypedDict):
    name: str
    number: int


class Queue(TypedDict):
    length: int
    limit: int


class PoolState(TypedDict):
    mode: str
    sessions: dict[str, int]
    resident: int
    max_sessions: int
    busy: int
    max_busy: int
    evictions: dict[str, int] | None
    rehydrations: int | None
    refusals: dict[str, int] | None
    wait_ms: dict[str, float] | None


class TenantState(TypedDict):
    resident: int
    busy: int
    waiting: int
    max_sessions: int | None


class FlyingTurn(TypedDict):
    """A turn that has not ended; `limit_s` is the age at which it has for certain."""

    turn_id: str
    tenant: str
    session: str
    profile: str
    age_s: float
    limit_s: float


class TurnsState(TypedDict):
    ended: int | None
    in_flight: list[FlyingTurn]


class ProcessState(TypedDict):
    children: dict[str, int]
    per_session: dict[str, int]
    orphans_killed: int | None
    mcp: int
    open_fds: int | None
    threads: int | None
    threads_abandoned: int | None
    cpu_s: float | None


class MemoryState(TypedDict):
    process_bytes: int | None
    children_bytes: int | None
    total_bytes: int
    baseline_bytes: int | None
    session_bytes: dict[str, int]


class AlertState(TypedDict):
    alert: str
    active: bool
    since: float | None
    value: float
    line: float
    limit: float
    unit: str
    message: str
    remedy: str


class PlanState(TypedDict):
    """The capacity plan; None: not planned."""

    sessions: int | None
    mcp_processes: int | None
    memory_bytes: int | None
    alert_at: float


class ServiceStatus(TypedDict):
    """How the instance is, or one tenant's part of it: then None stands for what is the whole's."""

    schema: Literal["agentao-gov/status/1"]
    instance: Instance
    ready: bool
    not_ready_because: list[str]
    shutdown_rung: RungState
    pool: PoolState
    busy: int
    queue: Queue
    hibernated: int | None
    tenants: dict[str, TenantState]
    turns: TurnsState
    processes: ProcessState
    memory: MemoryState
    budgets: list[BudgetJson]
    alerts: list[AlertState]
    capacity: PlanState | None
    #: One figure a second of the last minutes, asked for with `?history`.
    history: NotRequired[dict[str, list[int]]]
