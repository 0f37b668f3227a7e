"""What a run found besides its turns: the checklist, faults, deaths, signals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentao_gov.loadtest.baseline import Comparison

__all__ = ["Findings"]


@dataclass(slots=True)
class Findings:
    """What the run found besides its turns."""

    started_at: float
    checklist: dict[str, Any] = field(default_factory=dict)
    checklist_failed: bool = False
    comparisons: Sequence[Comparison] = ()
    baseline: dict[str, Any] = field(default_factory=dict)
    faults: Sequence[dict[str, Any]] = ()
    budget_overshoot: int | None = None
    #: Processes of the service that outlived its end; None where it was not ended here.
    orphans: int | None = None
    differences: Sequence[str] = ()
    #: The sessions' time to live, where it is short enough for the run to have waited for it.
    ttl_s: float | None = None
    service_died: str | None = None
    generator_died: str | None = None
    signal: int | None = None
    #: Why the run was refused before it began, with its exit code.
    refused: tuple[str, int] | None = None
