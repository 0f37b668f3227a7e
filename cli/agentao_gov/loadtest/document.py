"""The load-test report as a model: what `report.json` holds, and the JSON Schema that is published for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA: Literal["agentao-gov/loadtest/1"] = "agentao-gov/loadtest/1"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Percentiles(_Part):
    """Milliseconds; null without samples."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    count: int = 0


class ThresholdPart(_Part):
    """One threshold. `observed` is in milliseconds, shares of 1, bytes or counts, as `unit` says."""

    expression: str
    observed: float | None
    status: Literal["pass", "fail", "inconclusive"]
    unit: str
    limit: float
    samples: int
    reason: str = ""


class TurnsPart(_Part):
    """The books: attempted = answered + failed + timed_out + cancelled + unfinished."""

    attempted: int
    answered: int
    failed: int
    timed_out: int
    cancelled: int
    unfinished: int
    by_outcome: dict[str, int]
    rate_per_s: float | None = None
    goodput_per_s: float | None = None
    error_rate: float | None = None
    rejection_rate: float | None = None


class GroupPart(_Part):
    """The same for one profile or tenant."""

    turns: TurnsPart
    latency_ms: dict[str, Percentiles]
    tokens: dict[str, float | int | None]


class ServerPart(_Part):
    """The service's processes over time; empty for a target whose processes are elsewhere."""

    samples: list[dict[str, Any]] = []
    peaks: dict[str, Any] = {}
    #: Slopes and what stayed behind.
    leaks: dict[str, Any] = {}


class CapacityPart(_Part):
    """What was found by `--shape capacity`; elsewhere what was seen, without a claim."""

    sessions: int | None = None
    turns_per_s: float | None = None
    bottleneck: str | None = None
    knee: dict[str, Any] = {}
    probes: list[dict[str, Any]] = []
    plan: dict[str, Any] = {}


class LoadTestReport(_Part):
    """The whole report."""

    schema_: Literal["agentao-gov/loadtest/1"] = Field(default=SCHEMA, alias="schema")
    #: Whatever is not a pass is a fail here; `conclusion` tells a failure from an inconclusive or interrupted run.
    verdict: Literal["pass", "fail"]
    conclusion: Literal["pass", "fail", "inconclusive", "interrupted"]
    exit_code: int
    reasons: list[str] = []
    #: True when the run was ended before its time: every figure covers only what was seen.
    partial: bool = False
    started_at: str
    duration_s: float
    plan: dict[str, Any]
    checklist: dict[str, Any]
    thresholds: list[ThresholdPart]
    turns: TurnsPart
    #: Where starts and ends do not agree, by profile and tenant; such a run is never a pass.
    imbalances: list[str] = []
    latency_ms: dict[str, Percentiles]
    tokens: dict[str, float | int | None]
    by_profile: dict[str, GroupPart]
    by_tenant: dict[str, GroupPart]
    server: ServerPart
    capacity: CapacityPart
    #: How honest the generator was: lateness, lag, planned against offered.
    generator: dict[str, Any]
    #: Locust's own count of the same turns.
    cross_check: dict[str, Any] = {}
    faults: list[dict[str, Any]] = []
    isolation: dict[str, Any] = {}
    baseline: dict[str, Any] = {}
    timeline: list[dict[str, Any]] = []
    #: HDR histograms, base64 of the compressed V2 format, microseconds: what `--baseline` compares.
    histograms: dict[str, str] = {}
    environment: dict[str, Any]

    def to_json(self) -> str:
        """The report, indented: people read it too."""
        return self.model_dump_json(by_alias=True, indent=1)


def schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`; `agentao-gov schema loadtest` prints it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:agentao-gov:loadtest:1",
        **LoadTestReport.model_json_schema(by_alias=True),
    }
