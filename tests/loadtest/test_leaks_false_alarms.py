"""Clean services are not called leaking: recorded soaks of the real one, and fifty more made from them.

`data/clean_soaks.json` has the looks of real soaks (`agentao-gov loadtest --shape soak`, 40 to 120 s long, both hosting
modes, several mixes and rates, on a busy machine): second, turns so far, resident KiB, descriptors, children, threads.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.loadtest.leaks import ServiceSample, leak_findings
from agentao_gov.loadtest.thresholds import SOAK_DEFAULTS, Observation, evaluate, parse_threshold

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "clean_soaks.json").read_text())
MIB = 1024**2
LEAK = 50 * 1024
#: Looks resampled together, so that what hangs together stays together: five seconds.
BLOCK = 10


def looks_of(run: dict[str, Any]) -> list[ServiceSample]:
    return [
        ServiceSample(at_s, turns, None if kib is None else kib * 1024, fds, children, threads)
        for at_s, turns, kib, fds, children, threads in run["looks"]
    ]


def failed(run: dict[str, Any], looks: list[ServiceSample]) -> set[str]:
    """Which of a soak's thresholds this run fails."""
    rests = [(start, end) for start, end in run["rests"]]
    found = leak_findings(looks, rests, sessions=run["sessions"], load_end_s=run["load_end_s"])
    slope = found["memory_bytes_per_turn"]
    values = {
        "memory_slope": None if slope is None else slope["beyond_warm_up"],
        "fds_leaked": found["fds"]["leaked"],
        "processes_leaked": found["children"]["leaked"],
        "threads_leaked": found["threads"]["leaked"],
    }
    seen = Observation({}, values)
    thresholds = [parse_threshold(text) for text in SOAK_DEFAULTS if text.split("<")[0] in values]
    assert len(thresholds) == len(values)
    return {threshold.name for threshold in thresholds if evaluate(threshold, seen).status == "fail"}


def made(run: dict[str, Any], rng: random.Random) -> list[ServiceSample]:
    """Another run of the same kind: the recorded growth in another order, a saw-tooth of garbage, a step."""
    return noisy([look for look in looks_of(run) if look.rss_bytes is not None], rng)


def longer(run: dict[str, Any], until_s: float) -> list[ServiceSample]:
    """The run, gone on with as it was once warm."""
    looks = [look for look in looks_of(run) if look.rss_bytes is not None and look.at_s < run["load_end_s"]]
    again = looks[int(0.4 * len(looks)) :]
    while looks[-1].at_s < until_s:
        last, first = looks[-1], again[0]
        looks += [
            replace(
                look,
                at_s=last.at_s + 0.5 + look.at_s - first.at_s,
                turns=last.turns + look.turns - first.turns,
                rss_bytes=(last.rss_bytes or 0) + (look.rss_bytes or 0) - (first.rss_bytes or 0),
            )
            for look in again
        ]
    return [look for look in looks if look.at_s < until_s]


def noisy(looks: list[ServiceSample], rng: random.Random) -> list[ServiceSample]:
    """Looks in which what is random is drawn again."""
    growth = [(b.rss_bytes or 0) - (a.rss_bytes or 0) for a, b in itertools.pairwise(looks)]
    warm = next(i for i, look in enumerate(looks) if look.turns >= 0.4 * looks[-1].turns)
    # The warm-up stays where it is: at the beginning.
    steps = [step for part in (growth[:warm], growth[warm:]) for step in shuffled(part, rng)]
    tooth, period, phase = rng.uniform(0, 3 * MIB), rng.randint(8, 60), rng.randrange(60)
    jump_at, jump = rng.randrange(len(looks)), rng.uniform(-1, 2) * MIB
    level, out = float(looks[0].rss_bytes or 0), []
    for number, look in enumerate(looks):
        level += steps[number - 1] if number else 0
        garbage = tooth * ((number + phase) % period) / period
        out.append(replace(look, rss_bytes=int(level + garbage + (jump if number >= jump_at else 0))))
    return out


def shuffled(steps: list[int], rng: random.Random) -> list[int]:
    """As many steps, in blocks drawn with replacement."""
    out: list[int] = []
    while len(out) < len(steps):
        start = rng.randrange(max(1, len(steps) - BLOCK + 1))
        out += steps[start : start + BLOCK]
    return out[: len(steps)]


def leaking(looks: list[ServiceSample]) -> list[ServiceSample]:
    """The same service with a leak of 50 KB a turn."""
    return [replace(look, rss_bytes=(look.rss_bytes or 0) + LEAK * look.turns) for look in looks]


def test_recorded_clean_runs_pass() -> None:
    """Not one of them, in either mode."""
    assert len(RECORDED) >= 20
    assert {run["mode"] for run in RECORDED} == {"in-process", "subprocess"}

    assert [failed(run, looks_of(run)) for run in RECORDED] == [set()] * len(RECORDED)


def test_at_most_5_percent_of_clean_runs_are_called_leaking() -> None:
    """100 runs made from recorded ones: autocorrelated noise, garbage, steps."""
    rng = random.Random(6)
    runs = [run for run in RECORDED if run["looks"][-1][1] >= 250]

    false = [found for run in (rng.choice(runs) for _ in range(100)) if (found := failed(run, made(run, rng)))]

    assert len(false) <= 5, false


def test_50_kb_a_turn_are_found_within_120_s_of_the_same_noise() -> None:
    """In at least 48 of 50, so that the few false alarms are not bought with blindness."""
    rng = random.Random(7)
    runs = [run for run in RECORDED if run["mode"] == "in-process" and run["looks"][-1][1] >= 250]

    drawn = [rng.choice(runs) for _ in range(50)]
    found = [failed({**run, "load_end_s": 120}, leaking(noisy(longer(run, 120), rng))) for run in drawn]

    assert sum("memory_slope" in names for names in found) >= 48


@pytest.mark.parametrize(("name", "column"), [("fds_leaked", "fds"), ("processes_leaked", "children")])
def test_one_a_session_is_found_in_every_recorded_run(name: str, column: str) -> None:
    """A descriptor or a child that stays for each session played."""
    for run in RECORDED:
        looks = looks_of(run)
        a_turn = run["sessions"] / max(1, looks[-1].turns)
        leaky = [replace(k, **{column: (getattr(k, column) or 0) + int(a_turn * k.turns)}) for k in looks]
        assert name in failed(run, leaky)
