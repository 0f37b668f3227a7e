"""The TurnReport, the one record every turn ends with: why it ended, what it used, and what may be said about it.

`contract.md`, "TurnReport", fixes its fields. Every sentence of it exists in two tellings, because a tenant must not
read the operator's addresses and providers, and every sentence is redacted before it is written.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from agentao_gov.endings import Outcome
from agentao_gov.errors import GovError

if TYPE_CHECKING:
    from agentao_gov.budget.types import Balance

#: Where a session's agent lives.
Mode = Literal["fresh", "in-process", "subprocess"]
#: How one tool call ended.
ToolOutcome = Literal["ok", "error", "timeout", "denied", "cancelled"]
TURN_REPORT_SCHEMA: Literal["agentao-gov/turn-report/1"] = "agentao-gov/turn-report/1"

# ── why a turn ended, in two tellings ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that happened, in two tellings: for the tenant who asked, and for whoever runs the service.

    A sentence that is given once is fit for both: `Reason("The turn was cancelled.")`.
    """

    #: Safe for a tenant: nothing of the operator's addresses, files and providers, and nothing that those said.
    public: str
    #: What the operator needs to mend it; empty where that is the public sentence.
    private: str = ""

    @classmethod
    def of(cls, error: GovError) -> Reason:
        """The two tellings that an error of ours carries."""
        return cls(error.public_message, str(error))

    @property
    def operator(self) -> str:
        """The telling with all that is known."""
        return self.private or self.public

    def after(self, words: str) -> Reason:
        """The reason with `words` put before both tellings."""
        return Reason(words + self.public, words + self.operator)


# ── the record ────────────────────────────────────────────────────────────────────────────────────


class _ReportPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timing(_ReportPart):
    """Milliseconds. `first_token` is None where no text arrived; `total` includes `queued`."""

    total: int = 0
    queued: int = 0
    first_token: int | None = None
    model: int = 0
    tools: int = 0


class Usage(_ReportPart):
    """Tokens, as the provider counts them. `estimated_tokens` is the part of the total no provider reported."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    #: Written to the provider's prompt cache.
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    #: Requests sent, retries and summaries included.
    llm_calls: int = 0
    #: What sub-agents used; included in the total.
    subtree_tokens: int = 0
    estimated_tokens: int = 0


class ToolCall(_ReportPart):
    """One tool call, in the order of its end."""

    name: str
    outcome: ToolOutcome
    duration_ms: int
    #: Why it was refused; None unless it was.
    reason: str | None = None


class LimitLine(_ReportPart):
    """One effective limit and where its value came from."""

    value: Any
    source: str


class BudgetLine(_ReportPart):
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
        """One balance of the ledger as a line of the report."""
        return cls(
            scope=balance.scope.kind,
            key=balance.scope.key,
            window=balance.window,
            timezone=balance.timezone,
            limit=balance.limit,
            used=balance.used,
            reserved=balance.reserved,
        )


class TurnReport(_ReportPart):
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
        """The report with `reason` as one more warning, each telling in its own list."""
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


# ── redaction ─────────────────────────────────────────────────────────────────────────────────────

_PATTERNS = (
    # Keys of the big providers; the prefix stays, so that a reader sees what kind of key it was.
    re.compile(r"\b(sk-(?:proj-|ant-|or-)?)[A-Za-z0-9_\-]{8,}"),
    re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._\-]{8,}"),
    re.compile(r"(?i)((?:api[_-]?key|token|secret|password)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]{6,}"),
    # Credentials in a URL.
    re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^/\s:@]+:[^/\s@]+@"),
)
#: Stand-ins for a key where an endpoint wants none.
_NO_SECRETS = frozenset({"none", "not-needed"})
_MASK = r"\1[REDACTED]"


def replace_surrogates(text: str) -> str:
    """`text` with the halves of a character joined where they stand together, and replaced by U+FFFD where they do not.

    Models and file names hold them, and no text that does can be written, sent or stored as UTF-8.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def redact(text: str, *secrets: str) -> str:
    """`text` with the given secrets, and whatever looks like a key, a token or a password, masked.

    A secret shorter than four characters, or one that stands for "no key", is left in.
    """
    text = replace_surrogates(text)
    for secret in secrets:
        if len(secret) >= 4 and secret not in _NO_SECRETS:
            text = text.replace(secret, "[REDACTED]")
    for pattern in _PATTERNS:
        text = pattern.sub(_MASK, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts every record of a logger that agentao writes to, and drops its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record in place; lets it through."""
        try:
            record.msg = redact(record.getMessage())
        except (TypeError, ValueError):
            record.msg = "a log record that could not be rendered"
        record.args = ()
        # A traceback of the SDK quotes request bodies.
        record.exc_info = None
        record.exc_text = None
        return True
