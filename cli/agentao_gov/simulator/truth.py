"""The ground truth: what the simulated provider really received and really produced, whatever its clients believe."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel

from agentao_gov.simulator.plan import Plan
from agentao_gov.simulator.request import ChatRequest, WireName

#: Requests kept one by one; the tallies go on for ever. 20,000 records are about 15 MB.
RECORDS_MAX = 20_000
#: Keys per dimension; later ones are summed under this name.
KEYS_MAX = 10_000
OVERFLOW_KEY = "(others)"
QUESTION_CHARS = 200


def key_id(api_key: str) -> str:
    """How an API key appears in the truth: never in clear, as a real one may be sent by mistake."""
    return hashlib.sha256(api_key.encode("utf-8", "replace")).hexdigest()[:12] if api_key else "none"


@dataclass(slots=True)
class CallTally:
    """Sums over requests. `prompt_tokens` + `completion_tokens` is what the provider would bill."""

    calls: int = 0
    answered: int = 0
    refused: int = 0
    client_gone: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    prompt_tokens: int = 0
    #: Tokens that were written to the client, also of answers cut short.
    completion_tokens: int = 0
    reported_tokens: int = 0
    #: Parts of `prompt_tokens`.
    cached_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds since the epoch."""

    number: int
    model: str
    api_key: str
    wire: WireName = "completions"
    user: str | None = None
    session: str | None = None
    tag: str | None = None
    question: str = ""
    digest: str = ""
    stream: bool = False
    max_tokens: int | None = None
    messages: int = 0
    #: Tools that the model may call.
    tools: int = 0
    round: int = 0
    is_summary: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200
    fault: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[str, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reported_tokens: int | None = None
    #: Parts of the prompt that were read from the prompt cache, and written to it.
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    started_at: float = 0.0
    first_byte_at: float | None = None
    ended_at: float | None = None
    #: The client closed the connection before the answer was complete.
    client_gone: bool = False


class Truth(BaseModel):
    """A snapshot of everything."""

    total: CallTally = CallTally()
    by_api_key: dict[str, CallTally] = {}
    by_user: dict[str, CallTally] = {}
    by_session: dict[str, CallTally] = {}
    by_model: dict[str, CallTally] = {}
    by_tag: dict[str, CallTally] = {}
    #: Requests waiting for a place of the simulated capacity, and those on hold.
    queued: int = 0
    held: int = 0
    requests: tuple[RequestRecord, ...] = ()

    def for_key(self, api_key: str) -> CallTally:
        """The tally of one API key."""
        return self.by_api_key.get(key_id(api_key), CallTally())


class GroundTruth:
    """Keeps the books. Owned by the server's loop; `on_change` is called after each change."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.total = CallTally()
        self._by: dict[str, dict[str, CallTally]] = {
            name: {} for name in ("api_key", "user", "session", "model", "tag")
        }
        self._records: deque[RequestRecord] = deque(maxlen=RECORDS_MAX)

    def begin(self, request: ChatRequest, plan: Plan, now: float) -> RequestRecord:
        """Books an arrival."""
        record = RequestRecord(
            number=self.total.calls + 1,
            model=request.model,
            api_key=key_id(request.api_key),
            wire=request.wire,
            user=request.user,
            session=request.headers.get("x-gov-session") or request.headers.get("x-session-id"),
            tag=plan.tag,
            question=request.question[:QUESTION_CHARS],
            digest=request.digest,
            stream=request.stream,
            max_tokens=request.max_tokens,
            messages=len(request.messages),
            tools=len(request.tools) if request.may_call_tools else 0,
            round=request.round_index,
            is_summary=request.is_summary,
            headers=request.headers,
            status=plan.status,
            fault=plan.fault,
            tool_calls=plan.tool_calls,
            prompt_tokens=request.prompt_tokens if plan.billed else 0,
            cached_tokens=plan.cached_tokens,
            cache_write_tokens=plan.cache_write_tokens,
            started_at=now,
        )
        self._records.append(record)
        for tally in self._tallies(record):
            tally.calls += 1
            tally.in_flight += 1
            tally.peak_in_flight = max(tally.peak_in_flight, tally.in_flight)
            tally.prompt_tokens += record.prompt_tokens
            tally.cached_tokens += record.cached_tokens
            tally.cache_write_tokens += record.cache_write_tokens
        self._on_change()
        return record

    def refuse(self, record: RequestRecord, status: int) -> None:
        """The capacity gate turned an accepted request away: nothing is billed."""
        for tally in self._tallies(record):
            tally.prompt_tokens -= record.prompt_tokens
            tally.cached_tokens -= record.cached_tokens
            tally.cache_write_tokens -= record.cache_write_tokens
        record.status, record.prompt_tokens = status, 0
        record.cached_tokens = record.cache_write_tokens = 0
        record.tool_calls = ()

    def end(self, record: RequestRecord, now: float, *, plan: Plan, gone: bool) -> None:
        """Books the end; what was written is already in the record."""
        record.ended_at = now
        record.client_gone = gone
        complete = not gone and plan.end == "end" and record.status == 200
        if complete:
            record.finish_reason = plan.finish_reason
            if plan.reported_usage is not None:
                record.reported_tokens = plan.reported_usage.total_tokens
        for tally in self._tallies(record):
            tally.in_flight -= 1
            tally.completion_tokens += record.completion_tokens
            tally.answered += complete and plan.finish_reason is not None
            tally.refused += record.status != 200
            tally.client_gone += gone
            tally.reported_tokens += record.reported_tokens or 0
        self._on_change()

    def snapshot(self, *, queued: int, held: int, requests: bool) -> dict[str, Any]:
        """Everything as JSON-ready values, in the shape of `Truth`."""
        return {
            "total": asdict(self.total),
            **{f"by_{name}": {k: asdict(t) for k, t in group.items()} for name, group in self._by.items()},
            "queued": queued,
            "held": held,
            "requests": [asdict(record) for record in self._records] if requests else [],
        }

    def _tallies(self, record: RequestRecord) -> Iterable[CallTally]:
        yield self.total
        for name, group in self._by.items():
            key = getattr(record, name)
            if key is not None:
                if key not in group and len(group) >= KEYS_MAX:
                    key = OVERFLOW_KEY
                tally = group.get(key)
                if tally is None:
                    tally = group[key] = CallTally()
                yield tally
