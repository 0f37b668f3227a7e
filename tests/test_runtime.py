"""The floors put together: what is looked at before anything is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from agentao_gov.config import load_deployment
from agentao_gov.runtime import open_runtime


@pytest.mark.parametrize(
    ("mode", "after", "said"),
    [
        (0o777, 0o700, "it is 0700 now"),
        (0o775, 0o700, "it is 0700 now"),
        (0o1777, 0o1777, "give the service a directory of its own"),
        (0o755, 0o755, ""),
    ],
)
def test_a_state_directory_that_others_may_write_into_is_closed_with_a_line_that_says_so(
    mode: int, after: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """But for one that is everybody's on purpose, like /tmp: there the operator is told to choose another."""
    state = Path(os.environ["AGENTAO_GOV_STATE"])
    state.mkdir()
    state.chmod(mode)

    with open_runtime(load_deployment(None)) as runtime:
        found = stat.S_IMODE(runtime.deployment.state_dir.stat().st_mode)

    told = [record.getMessage() for record in caplog.records if "state directory" in record.getMessage()]
    assert found == after
    assert len(told) == bool(said)
    assert all(said in line for line in told)
