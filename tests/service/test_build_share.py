"""Workers share the deployment's limits instead of multiplying them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.config import Capacity, Deployment, Pool, ResolvedDeployment, Tenant
from agentao_gov.service.build import limits_per_worker


def resolved(**tables: object) -> ResolvedDeployment:
    return ResolvedDeployment(Deployment.model_construct(**{**Deployment().__dict__, **tables}), {})


@given(workers=st.integers(1, 16), sessions=st.integers(16, 1000), cap=st.integers(16, 100), queue=st.integers(0, 500))
def test_all_workers_together_hold_no_more_than_the_file_allows(
    workers: int, sessions: int, cap: int, queue: int
) -> None:
    """Whatever the number of workers."""
    pool = Pool(max_sessions=sessions, max_busy=16, queue_limit=queue)
    whole = resolved(pool=pool, tenants={"acme": Tenant(max_sessions=cap)}, capacity=Capacity(sessions=sessions))

    part = limits_per_worker(whole, workers).deployment

    assert 0 < part.pool.max_sessions * workers <= sessions
    assert 0 < part.pool.max_busy * workers <= 16
    assert part.pool.queue_limit * workers <= queue
    assert part.tenants["acme"].max_sessions is not None
    assert 0 < part.tenants["acme"].max_sessions * workers <= cap
    assert part.tenants["acme"].max_sessions_per_user is None


def test_a_cap_that_cannot_be_divided_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Two sessions over four workers: one each, and a warning."""
    part = limits_per_worker(resolved(tenants={"acme": Tenant(max_sessions=2)}), 4).deployment

    assert part.tenants["acme"].max_sessions == 1
    assert [record.message for record in caplog.records] == ["limit below the number of workers"]
