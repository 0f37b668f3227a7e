"""The checklist's result: checks make an item, items make a verdict. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agentao_gov.checklist.facts import Facts, shown_path
from agentao_gov.checklist.items import Item, ItemId
from agentao_gov.checklist.remedy import Remedy, render
from agentao_gov.config.toml_text import key_line
from agentao_gov.report.gate import GateCase, GateReport, GateTable

CHECKLIST_SCHEMA: Literal["agentao-gov/checklist/1"] = "agentao-gov/checklist/1"
Status = Literal["pass", "fail", "warn", "skip"]
#: What can be done about a limit that is configured and does not hold.
NO_SETTING = (
    "# No setting mends this: the limit is configured, and the service does not hold it.\n"
    "# Keep the report (--format json --output FILE) and open an issue with it."
)
_RANK: dict[Status, int] = {"skip": 0, "pass": 1, "warn": 2, "fail": 3}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at within an item."""

    status: Status
    #: What must hold.
    expected: str
    #: What was seen, with the figures.
    observed: str
    evidence: tuple[str, ...] = ()
    remedy: Remedy | None = None


class _ChecklistPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Scaled(_ChecklistPart):
    """A value that the probe ran with instead of the configured one: the same code path, sooner."""

    key: str
    configured: str
    probed: str


class Place(_ChecklistPart):
    """Where a person has to look."""

    file: str
    line: int | None = None


class ItemReport(_ChecklistPart):
    """One item of the report (`contract.md`, "Checklist report")."""

    id: ItemId
    number: int
    title: str
    status: Status
    expected: str
    observed: str
    evidence: tuple[str, ...] = ()
    #: The lines to put into the configuration; null where there is nothing to mend.
    remedy: str | None = None
    duration_ms: int = 0
    scaled: tuple[Scaled, ...] = ()
    #: The configuration's file and line that the trouble is about; null where there is none.
    place: Place | None = None

    @property
    def summary(self) -> str:
        """What decided, in a line; a passed item has many observations, and all of them are good."""
        if self.status != "pass":
            return self.observed
        return f"{sum(line.startswith('[pass]') for line in self.evidence)} checks hold"


class ChecklistReport(_ChecklistPart):
    """The whole report."""

    schema_: Literal["agentao-gov/checklist/1"] = Field(default=CHECKLIST_SCHEMA, alias="schema")
    verdict: Literal["pass", "fail"]
    config: str
    #: The service that was walked: ours, started for the purpose, or a foreign one.
    target: str | None = None
    profile: str = ""
    strict: bool = False
    started_at: datetime | None = None
    duration_ms: int = 0
    items: tuple[ItemReport, ...]

    def to_json(self) -> str:
        """The report, indented: people read it in CI logs."""
        return self.model_dump_json(by_alias=True, indent=2)

    @property
    def tried_nothing(self) -> bool:
        """Whether every item was skipped, so that the verdict rests on nothing."""
        return all(item.status == "skip" for item in self.items)

    @property
    def exit_code(self) -> int:
        """0, 1, or 11 where nothing was tried."""
        if self.tried_nothing:
            return 11
        return 0 if self.verdict == "pass" else 1


def assemble(
    item: Item,
    checks: Sequence[Check],
    *,
    duration_ms: int = 0,
    scaled: Iterable[Scaled] = (),
    place: Place | None = None,
) -> ItemReport:
    """Makes an item of its checks: the worst one decides, and what is wrong is said first.

    Args:
        item: which one.
        checks: what was looked at.
        duration_ms: how long that took.
        scaled: values that the probe ran with instead of the configured ones.
        place: the configuration's line that the trouble is about.
    """
    if not checks:
        return skipped(item, "nothing could be tried")
    status = max((check.status for check in checks), key=_RANK.__getitem__)
    ordered = sorted(checks, key=lambda check: -_RANK[check.status])
    remedy = render([check.remedy for check in ordered if check.remedy and check.status in ("fail", "warn")])
    shown = [check for check in ordered if check.status == status]
    evidence = [line for check in checks for line in _evidence(check)]
    return ItemReport(
        id=item.id,
        number=item.number,
        title=item.title,
        status=status,
        expected=_join(check.expected for check in shown),
        observed=_join(check.observed for check in shown),
        evidence=tuple(evidence),
        remedy=remedy or (NO_SETTING if status == "fail" else None),
        duration_ms=duration_ms,
        scaled=tuple(scaled),
        place=place,
    )


def skipped(item: Item, reason: str) -> ItemReport:
    """An item that was not tried, and the `reason`."""
    return ItemReport(
        id=item.id, number=item.number, title=item.title, status="skip", expected="", observed=reason, remedy=None
    )


def judge(items: Iterable[ItemReport], *, strict: bool) -> Literal["pass", "fail"]:
    """The verdict over the `items`: none failed, with `strict` none warned, and at least one was tried."""
    statuses = [item.status for item in items]
    bad = {"fail", "warn"} if strict else {"fail"}
    return "fail" if bad & set(statuses) or set(statuses) <= {"skip"} else "pass"


def gate_report(report: ChecklistReport) -> GateReport:
    """The shape that the JUnit, Markdown and GitHub writers read."""
    counts = {status: sum(1 for item in report.items if item.status == status) for status in _RANK}
    words = ", ".join(f"{counts[s]} {w}" for s, w in _WORDS if counts[s])
    cases = tuple(_case(item, report) for item in report.items)
    scaled = tuple((s.key, s.configured, s.probed) for item in report.items for s in item.scaled)
    tables = (GateTable("Scaled for the probes", ("setting", "configured", "probed"), _unique(scaled)),)
    return GateReport(
        name="checklist",
        headline=f"{report.verdict}: {words}",
        conclusion="inconclusive" if report.tried_nothing else report.verdict,
        cases=cases,
        facts=(("configuration", report.config), ("profile", report.profile), ("target", report.target or "own")),
        tables=tables if scaled else (),
        duration_s=report.duration_ms / 1000,
        properties={"config": report.config, "profile": report.profile},
    )


_WORDS: tuple[tuple[Status, str], ...] = (
    ("fail", "failed"),
    ("warn", "warned"),
    ("pass", "passed"),
    ("skip", "skipped"),
)


def _case(item: ItemReport, report: ChecklistReport) -> GateCase:
    status = "fail" if report.strict and item.status == "warn" else item.status
    config = report.config if report.config.endswith(".toml") else None
    return GateCase(
        id=item.id,
        title=f"{item.number}. {item.title}",
        status=status,
        expected="" if item.status == "pass" else item.expected,
        observed=item.summary,
        evidence=(*item.evidence, *(f"scaled: {s.key} {s.configured} → {s.probed}" for s in item.scaled)),
        remedy=item.remedy or "",
        duration_ms=item.duration_ms,
        file=item.place.file if item.place else config,
        line=item.place.line if item.place else None,
    )


def json_schema() -> dict[str, Any]:
    """The report's JSON Schema, as it is written: every field is there."""
    return ChecklistReport.model_json_schema(by_alias=True, mode="serialization")


def _evidence(check: Check) -> list[str]:
    return [f"[{check.status}] {check.expected}: {check.observed}", *(f"  {line}" for line in check.evidence)]


def _join(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _unique(rows: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    return tuple(dict.fromkeys(rows))


_BAD = ("fail", "warn")


def place_of(checks: Iterable[Check], facts: Facts) -> Place | None:
    """The file of the first remedy among the bad `checks`, with the line of its key or of its table.

    `facts`: where the files are.
    """
    bad = sorted((check for check in checks if check.status in _BAD), key=lambda check: _BAD.index(check.status))
    for check in bad:
        if check.remedy is not None and (path := _file(check.remedy, facts)) is not None:
            return Place(file=shown_path(path), line=_line(check.remedy, path))
    return Place(file=shown_path(facts.path)) if bad and facts.path is not None else None


def _file(remedy: Remedy, facts: Facts) -> Path | None:
    if remedy.file == "deployment":
        return facts.path
    name = remedy.file.removeprefix("profile ")
    return next((resolved.path for resolved in facts.profiles if resolved.profile.name == name), None)


def _line(remedy: Remedy, path: Path) -> int | None:
    if not remedy.settings:
        return None
    key, _ = remedy.settings[0]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return key_line(text, key if isinstance(key, str) else ".".join(key))
