"""Containers that share a state directory: each sees the other's pids as dead, and neither removes what is in use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agentao_gov.simulator import Simulator

#: A guard against hanging, not an expectation.
_GUARD_S = 60.0
_UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")


def _can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*_UNSHARE, "true"], check=False).returncode == 0


def _run(simulator: Simulator, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "agentao_gov", "run", "--mode", "fresh", "--json"]
    return [*command, "--base-url", simulator.base_url, "--model", "sim", *arguments]


@pytest.mark.skipif(not _can_unshare(), reason="this user cannot make a namespace of pids")
def test_a_start_in_a_container_leaves_the_directory_of_a_turn_in_flight(simulator: Simulator, tmp_path: Path) -> None:
    """The turn's working directory is there until the turn has ended, and gone afterwards."""
    work = Path(os.environ["AGENTAO_GOV_STATE"]) / "work"
    turn = subprocess.Popen(
        _run(simulator, 'Hello.\n@sim {"hold": "gate"}'), stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        simulator.wait_for(timeout_s=_GUARD_S, in_flight=1)
        (directory,) = (path for path in work.iterdir() if path.is_dir())

        beside = subprocess.run(
            [*_UNSHARE, *_run(simulator, "hello")], check=False, capture_output=True, cwd=tmp_path, timeout=_GUARD_S
        )

        assert beside.returncode == 0, beside.stderr
        assert list(work.glob("*-*")) == [directory]
        simulator.release("gate")
        out, _ = turn.communicate(timeout=_GUARD_S)
    finally:
        turn.kill()
        turn.communicate()
    assert json.loads(out)["outcome"] == "answered"
    assert list(work.iterdir()) == []
