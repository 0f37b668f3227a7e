"""The books of a run: started = answered + failed + timed out + cancelled + unfinished, per profile and tenant. Pure.

Starts and ends are two lines of the generator's record, written at different times and counted apart here. Where they
do not agree something was lost or counted twice, and no figure of the run can be trusted.
"""

from __future__ import annotations

from collections import Counter

from agentao_gov.loadtest.recording import PhaseRecord

__all__ = ["imbalances"]


def imbalances(record: PhaseRecord) -> list[str]:
    """What does not add up, a sentence each; empty where all of it does."""
    ends = Counter((sample.profile, sample.tenant) for sample in record.samples)
    found = [
        f"{_whose(profile, tenant)}: {record.begun[profile, tenant]} turns started, {ends[profile, tenant]} ended"
        for profile, tenant in sorted(record.begun.keys() | ends.keys())
        if record.begun[profile, tenant] != ends[profile, tenant]
    ]
    if record.strays:
        found.append(f"{record.strays} turns ended without a start, or twice")
    if record.lost:
        found.append(f"{record.lost} turns were lost: the generator finished and never said how they ended")
    return found


def _whose(profile: str, tenant: str) -> str:
    return f"profile {profile} of tenant {tenant}"
