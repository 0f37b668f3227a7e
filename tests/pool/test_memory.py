"""What the sessions of one process weigh, by the benchmark's own method."""

from __future__ import annotations

import pytest
from benchmarks.pool import in_child


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_five_hundred_sessions_that_come_at_once_stay_under_200_mb() -> None:
    """With 100 messages of 2 KB each, as fast as they can be opened: the most the process ever holds."""
    weighed = in_child(500, 100)

    assert weighed["peak_rss_mb"] < 200
