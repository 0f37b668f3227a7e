"""A run that never ran: made-up turns in a real Execution, for everything that only looks at results."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from agentao_gov.loadtest.driver import LoadDriver
from agentao_gov.loadtest.execution import Execution, Played
from agentao_gov.loadtest.options import LoadOptions, build_phase, build_plan
from agentao_gov.loadtest.record import Beat, TurnSample
from agentao_gov.loadtest.server_series import ServerRow, ServerSeries
from agentao_gov.loadtest.target import Target
from agentao_gov.loadtest.view import SilentView, Stop

OUTCOMES = ["answered"] * 16 + ["queue_full", "client_timeout", "model_error", "unfinished", "cancelled"]


def played(*, tenants: tuple[str, ...], profiles: tuple[str, ...], turns: int, seed: int = 1) -> Execution:
    """An execution with one phase of 60 s, turns of every status, and a service that was watched."""
    rng = random.Random(seed)
    options = LoadOptions()
    plan = build_plan(options, target="http://127.0.0.1:1", profiles={}, queue_timeout_s=10, simulated=True)
    phase = build_phase(options, plan, tenants)
    driver = LoadDriver(plan, Path(tempfile.gettempdir()) / "never-written")
    record = driver.file.phase(0)
    for number in range(turns):
        at_s = rng.uniform(0, 60)
        took_us = int(rng.lognormvariate(0, 0.5) * 400_000)
        record.samples.append(
            TurnSample(
                id=str(number), phase=0, worker=0, session=f"s{number % 40}", profile=rng.choice(profiles),
                tenant=rng.choice(tenants), intended_s=at_s, sent_s=at_s + 0.001, latency_us=took_us + 1000,
                service_us=took_us, late_us=1000, outcome=rng.choice(OUTCOMES), first_token_us=took_us // 3,
                gap_mean_us=5000, queue_us=0, prompt_tokens=5000, completion_tokens=100, llm_calls=1,
            )
        )  # fmt: skip
    record.begun.update((sample.profile, sample.tenant) for sample in record.samples)
    record.beats.append(Beat(0, 0, 1.0, 1, 1, (100, 200), 0.2))
    series = ServerSeries("http://127.0.0.1:1", None)
    start = time.time() - 60
    for look in range(120):
        series.rows.append(
            ServerRow(start + look / 2, fds=40 + look % 3, threads=9, children=1, cpu=0.4, tree_cpu=0.5,
                      sessions={"busy": 3, "idle": look // 4})
        )  # fmt: skip
    execution = Execution(
        options, plan, (), Target("http://127.0.0.1:1", {}, tenants), driver, series, SilentView(), Stop()
    )
    execution.played.append(Played(phase, record, start, start + 60, planned=turns))
    return execution
