"""A soak finds a leak of memory, descriptors and children in a real process, and none in its clean twin."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from tests.loadtest.conftest import Stub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
THRESHOLDS = ["memory_slope<16KiB", "fds_leaked<=0", "processes_leaked<=0"]


def test_a_leak_is_found_and_its_clean_twin_is_not(
    stub: Callable[..., Stub], load: Callable[..., LoadTestReport]
) -> None:
    """50 KB a turn, one descriptor and one child a session, side by side with the same service without them."""
    services = {
        "leaky": stub(leak_bytes=True, leak_fds=True, leak_children=True, service_s=0.05),
        "clean": stub(service_s=0.05),
    }
    reports: dict[str, LoadTestReport] = {}

    def soak(name: str) -> None:
        reports[name] = load(
            services[name].url, shape="soak", rate=20.0, duration_s=24.0, turns_per_session=4, thresholds=THRESHOLDS
        )

    threads = [threading.Thread(target=soak, args=(name,)) for name in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = {name: {t.expression: t.status for t in report.thresholds} for name, report in reports.items()}
    assert set(found["leaky"].values()) == {"fail"}, reports["leaky"].server.leaks
    assert set(found["clean"].values()) == {"pass"}, reports["clean"].server.leaks
    slope = reports["leaky"].server.leaks["memory_bytes_per_turn"]
    assert slope["low"] < 50 * 1024 * 1.3
    assert slope["high"] > 50 * 1024 * 0.7
