"""A soak in waves: after each wave the service is idle, and what it holds must not climb from wave to wave.

`SOAK_S` sets how long the waves last (60 s by default; `make soak` takes 600); the rests between them come on top.
Memory is not given back by the allocator at once, so the test looks at the plateau of the waves' ends and not at the
start.
"""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time
from typing import Any

import psutil
import pytest

from agentao_gov.governor.file_program import NAME as FILE_TOOLS
from tests.e2e.service import Deployment, Service, say, wait_until

SOAK_S = float(os.environ.get("SOAK_S", "60"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(SOAK_S) + 180)]

#: What a plateau may still creep between its halves: caches that fill, fragmentation.
CREEP_BYTES = 12 * 2**20
CLIENTS = 16


def wave(service: Service, number: int, until: float) -> int:
    """Turns of every kind on sessions that come and go; returns how many."""
    kinds: list[dict[str, Any]] = [
        {"text": "short"},
        {"text": "tool", "tool": {"name": "glob", "args": {"pattern": "*"}}},
        {"answer_tokens": 300},
        {"fault": "500"},
        {"fault": {"kind": "drop"}},
        {"first_token": "100ms", "text": "slow"},
    ]

    def client(n: int) -> int:
        turns = 0
        while time.monotonic() < until:
            session = f"w{number}-{n}-{turns // 3}"
            answer = service.turn(session, say(**kinds[(n + turns) % len(kinds)]), profile="brisk")
            assert answer.status in (200, 502, 504), answer.body
            turns += 1
            if turns % 7 == 0:
                service.send("DELETE", f"/v1/sessions/{session}")
        return turns

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS)))


def footprint(service: Service, process: psutil.Process) -> dict[str, float]:
    """What the idle service holds, from /proc."""
    wait_until(lambda: service.status()["pool"]["resident"] == 0, "the idle service", 30)
    return {
        "memory": process.memory_info().rss,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        # The process of the file tools is made at first use and stays; it forks a child for each call.
        "children": sum(child.name() != FILE_TOOLS for child in process.children(recursive=True)),
    }


def test_nothing_climbs_over_waves_of_turns(deployment: Deployment) -> None:
    """Memory reaches a plateau; descriptors, threads and processes come back to where they were."""
    service = deployment.start("--no-warden", pool={"session_ttl": "1s", "max_sessions": 60})
    process = psutil.Process(service.process.pid)
    waves = 6
    each_s = SOAK_S / waves
    turns, ends = 0, []

    for number in range(waves):
        turns += wave(service, number, time.monotonic() + each_s)
        ends.append(footprint(service, process))
    half = waves // 2
    early, late = (statistics.median(end["memory"] for end in part) for part in (ends[1:half], ends[half:]))

    assert turns > waves * CLIENTS
    assert late - early < CREEP_BYTES, [round(end["memory"] / 2**20, 1) for end in ends]
    assert ends[-1]["descriptors"] <= ends[0]["descriptors"] + 2
    # Threads of the pool end after 20 idle seconds, so that what counts is that they do not add up.
    assert ends[-1]["threads"] <= ends[0]["threads"] + 8
    assert ends[-1]["children"] == ends[0]["children"] == 0
    assert service.metrics()["threads_abandoned"] == 0
