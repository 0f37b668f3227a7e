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


def _start(house: House, scratch: Path, *items: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentao_gov.main", "checklist", "--config", str(house.write())]
    return subprocess.Popen(
        [*command, *(f"--only={item}" for item in items)],
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


MOMENTS: dict[str, Callable[[list[psutil.Process]], bool]] = {
    "the simulator starts": lambda family: _runs(family, "agentao_gov.simulator"),
    "the service starts": lambda family: _runs(family, "agentao_gov.main", "serve"),
    "an MCP server runs": lambda family: _runs(family, "mcp_stub.py"),
    "workers run": lambda family: _runs(family, "multiprocessing.spawn"),
    "a server is asked why it fails": lambda family: _runs(family, "sulking_server.py"),
}
#: Every item once, at a moment of its own, by either signal; then two items side by side, and the ways that are worse.
CASES: list[tuple[tuple[str, ...], str, signal.Signals, int]] = [
    (("session_caps",), "the service starts", signal.SIGINT, 130),
    (("daily_token_budget",), "workers run", signal.SIGTERM, 143),
    (("turn_timeout",), "an MCP server runs", signal.SIGINT, 130),
    (("max_iterations",), "the simulator starts", signal.SIGTERM, 143),
    (("pool_limits",), "an MCP server runs", signal.SIGTERM, 143),
    (("graceful_shutdown",), "an MCP server runs", signal.SIGINT, 130),
    (("graceful_shutdown",), "a server is asked why it fails", signal.SIGINT, 130),
    (("monitoring",), "an MCP server runs", signal.SIGINT, 130),
    (("turn_timeout", "pool_limits"), "an MCP server runs", signal.SIGINT, 130),
    (("turn_timeout", "pool_limits"), "an MCP server runs", signal.SIGKILL, -9),
]


@pytest.mark.parametrize(("items", "moment", "signum", "code"), CASES)
def test_nothing_survives_the_checklist(
    house: House, tmp_path: Path, items: tuple[str, ...], moment: str, signum: signal.Signals, code: int
) -> None:
    """Interrupted or killed, in every item, with services, workers and MCP servers running."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sulking = tmp_path / "sulking_server.py"
    sulking.write_text("import sys, time\nprint('not today', file=sys.stderr, flush=True)\ntime.sleep(60)\n")
    server = {"command": sys.executable, "args": [str(sulking)], "startup_timeout": "1s"}
    house.profile("qa")["mcp"] = {"servers": {"sulking": server}}
    process = _start(house, scratch, *items)
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
