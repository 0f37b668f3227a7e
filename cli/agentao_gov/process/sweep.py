"""The sweep at the next start: kills what a dead owner left behind, and says how many there were.

The last net below the wardens. It only ever touches processes whose tag names an owner that is provably dead (same
boot, same pid namespace, no living process with that pid and start), so two services on one machine never meet.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agentao_gov.process import procfs
from agentao_gov.process.oslimits import sweep_cgroups
from agentao_gov.process.owner import Owner
from agentao_gov.process.tags import Tag
from agentao_gov.process.tree import ORPHANS_KILLED, KillResult, kill_processes


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a sweep found. `owners`: how many dead owners had left something behind."""

    killed: int
    owners: int
    survivors: tuple[int, ...] = ()


def _same_user(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


def find_orphans(of: Callable[[Owner], bool] | None = None) -> dict[int, Tag]:
    """Living processes of this user whose owner is dead. `of` narrows it down to some owners."""
    verdicts: dict[Owner, bool] = {}
    found: dict[int, Tag] = {}
    for stat in procfs.stats():
        if stat.dead or not _same_user(stat.ref.pid):
            continue
        tag = Tag.of(stat.ref.pid)
        if tag is None:
            continue
        if tag.owner not in verdicts:
            verdicts[tag.owner] = tag.owner.gone and (of is None or of(tag.owner))
        if verdicts[tag.owner]:
            found[stat.ref.pid] = tag
    return found


def sweep(of: Callable[[Owner], bool] | None = None, *, within_s: float = 2.0) -> SweepResult:
    """Kills the children of dead owners. Called once when a pool starts; the count feeds `orphans_killed_total`."""
    orphans = find_orphans(of)
    tags = set(orphans.values())
    result = kill_processes(tags, within_s=within_s) if tags else KillResult(0)
    # What neither tag nor descent finds any more is still in its control group, where there was one.
    killed = result.killed + (sweep_cgroups() if of is None else 0)
    ORPHANS_KILLED.add(killed)
    return SweepResult(killed, len({tag.owner for tag in tags}), result.survivors)
