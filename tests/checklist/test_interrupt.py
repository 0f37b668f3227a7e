"""Nothing is left behind: no process, no file, whatever ends the checklist, and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def _start(house: House, scratch: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentao_gov.main", "checklist", "--config", str(house.write())]
    return subprocess.Popen(
        [*command, "--only", "graceful_shutdown"],
        cwd=house.root,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _runs(family: list[psutil.Process], *words: str) -> bool:
    for child in family:
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            return True
    return False


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the checklist did not get there"
        time.sleep(0.01)


MOMENTS = {
    "the simulator starts": lambda family: _runs(family, "agentao_gov.simulator"),
    "the service starts": lambda family: _runs(family, "agentao_gov.main", "serve"),
    "an MCP server runs": lambda family: _runs(family, "mcp_stub.py"),
}


@pytest.mark.parametrize(
    ("moment", "signum", "code"),
    [*((moment, signal.SIGINT, 130) for moment in MOMENTS), ("an MCP server runs", signal.SIGKILL, -9)],
)
def test_nothing_survives_the_checklist(
    house: House, tmp_path: Path, moment: str, signum: signal.Signals, code: int
) -> None:
    """Interrupted or killed at a moment of its own choosing."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = _start(house, scratch)
    reached = MOMENTS[moment]
    _until(lambda: reached(_family(process)))
    family = _family(process)

    process.send_signal(signum)
    ended = process.wait(30)

    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert ended == code
    if signum != signal.SIGKILL:
        # A killed process cannot remove its files; they are private and in the temporary directory.
        assert list(scratch.iterdir()) == []
    assert not (Path(os.environ["AGENTAO_GOV_STATE"])).exists()
