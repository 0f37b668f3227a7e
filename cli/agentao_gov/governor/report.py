"""The TurnReport: the one record every turn ends with (`contract.md`, "TurnReport")."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from agentao_gov.governor.outcome import Mode, Outcome, ToolOutcome
from agentao_gov.governor.reason import Reason

if TYPE_CHECKING:
    from agentao_gov.budget.types import Balance

__all__ = ["BudgetLine", "LimitLine", "Timing", "ToolCall", "TurnReport", "Usage"]

TURN_REPORT_SCHEMA: Literal["agentao-gov/turn-report/1"] = "agentao-gov/turn-report/1"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timing(_Record):
    """Milliseconds. `first_token` is None where no text arrived; `total` includes `queued`."""

    total: int = 0
    queued: int = 0
    first_token: int | None = None
    model: int = 0
    tools: int = 0


class Usage(_Record):
    """Tokens, as the provider counts them. `estimated_tokens` is the part of the total no provider reported."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    #: Requests sent, retries and summaries included.
    llm_calls: int = 0
    #: What sub-agents used; included in the total.
    subtree_tokens: int = 0
    estimated_tokens: int = 0


class ToolCall(_Record):
    """One tool call, in the order of its end."""

    name: str
    outcome: ToolOutcome
    duration_ms: int


class LimitLine(_Record):
    """One effective limit and where its value came from."""

    value: Any
    source: str


class BudgetLine(_Record):
    """One scope of the ledger after the turn. Tokens; `limit` None is unlimited."""

    scope: Literal["tenant", "user", "session", "turn"]
    key: str
    window: str
    timezone: str
    limit: int | None
    used: int
    reserved: int

    @classmethod
    def of(cls, balance: Balance) -> BudgetLine:
        """The ledger's balance as a line."""
        return cls(
            scope=balance.scope.kind,
            key=balance.scope.key,
            window=balance.window,
            timezone=balance.timezone,
            limit=balance.limit,
            used=balance.used,
            reserved=balance.reserved,
        )


class TurnReport(_Record):
    """Why a turn ended and what it used. Exactly one per turn, whatever hangs."""

    schema_: Literal["agentao-gov/turn-report/1"] = Field(default=TURN_REPORT_SCHEMA, alias="schema")
    turn_id: str
    #: The `id` of a batch line; absent otherwise.
    id: str | int | None = Field(default=None, exclude_if=lambda v: v is None)
    tenant: str
    user: str
    session: str
    profile: str
    mode: Mode
    model: str
    outcome: Outcome
    answer: str | None
    #: Why it ended so, in a sentence that is safe for the tenant who asked.
    detail: str | None = None
    #: The same for the operator, who may read addresses, files and a provider's own words; None where `detail` says
    #: all. Never part of the JSON: `for_operator` puts it into `detail`.
    operator_detail: SkipJsonSchema[str | None] = Field(default=None, exclude=True)
    exit_code: int
    started_at: datetime
    timing_ms: Timing
    usage: Usage
    #: Rounds of the tool loop.
    iterations: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    limits: dict[str, LimitLine] = {}
    budget: tuple[BudgetLine, ...] = ()
    #: Safe for a tenant, as `detail` is.
    warnings: tuple[str, ...] = ()
    #: The same for the operator, one for each of `warnings`; empty where those say all. Never part of the JSON.
    operator_warnings: SkipJsonSchema[tuple[str, ...]] = Field(default=(), exclude=True)

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    def to_json(self) -> str:
        """The report on one line, safe for the tenant."""
        return self.model_dump_json(by_alias=True)

    def for_operator(self) -> TurnReport:
        """The report with all that is known in `detail` and `warnings`: for a log and the operator's own terminal."""
        return self.model_copy(
            update={
                "detail": self.operator_detail or self.detail,
                "warnings": self.operator_warnings or self.warnings,
                "operator_detail": None,
                "operator_warnings": (),
            }
        )

    def with_warning(self, reason: Reason) -> TurnReport:
        """The report with one more warning."""
        said = self.operator_warnings or self.warnings
        return self.model_copy(
            update={
                "warnings": (*self.warnings, reason.public),
                "operator_warnings": (*said, reason.operator),
            }
        )

    def private_fields(self) -> dict[str, Any]:
        """What the JSON leaves out, for the one wire between two processes of the same operator."""
        return {"operator_detail": self.operator_detail, "operator_warnings": self.operator_warnings}

    @property
    def has_answer(self) -> bool:
        """Whether there is text worth showing: an answer, or a wrapped-up one."""
        return bool(self.answer)
