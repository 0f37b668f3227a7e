"""The common shape of a gate's result: what JUnit, Markdown, GitHub and HTML writers need to know, and no more.

The checklist and the load test both turn their own report into a `GateReport`, so that every format tells the same
numbers. Texts may come from tenants and models: writers clean and escape them, callers need not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

CaseStatus = Literal["pass", "fail", "warn", "skip", "inconclusive"]
Conclusion = Literal["pass", "fail", "inconclusive", "interrupted"]

# Everything XML 1.0 forbids, plus C1 controls and the two line separators that break one-line formats.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def clean(text: object, *, one_line: bool = True) -> str:
    """The text without control characters, so that it can neither break a format nor steer a terminal.

    For reports. What a model says to a person at a terminal goes through `terminal.printable`, which marks nothing.
    """
    kept = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))
    return " ".join(kept.split()) if one_line else kept.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True, slots=True)
class GateCase:
    """One thing that was tried: a checklist item, a threshold, a fault."""

    id: str
    title: str
    status: CaseStatus
    expected: str = ""
    observed: str = ""
    evidence: tuple[str, ...] = ()
    #: What to do about a failure, ready to be copied.
    remedy: str = ""
    duration_ms: int = 0
    #: Where an annotation belongs, if anywhere.
    file: str | None = None
    line: int | None = None

    @property
    def beside_title(self) -> str:
        """What is expected, where the title does not say it already: a threshold's title is its condition."""
        return "" if self.expected == self.title else self.expected


@dataclass(frozen=True, slots=True)
class GateTable:
    """A table below the cases. Cells are shown as they are."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class GateReport:
    """A gate's result. `conclusion` decides the colour; `headline` is the one sentence a reader needs."""

    name: str
    headline: str
    conclusion: Conclusion
    cases: tuple[GateCase, ...]
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[GateTable, ...] = ()
    notes: tuple[str, ...] = ()
    duration_s: float = 0.0
    properties: dict[str, str] = field(default_factory=dict)
