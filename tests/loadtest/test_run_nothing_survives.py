"""After a load test, however it ended, no process of it runs and none of its files is left."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.loadtest.own import Run, start_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Flags, the signal sent once turns are played, and the exit code.
ENDINGS: dict[str, tuple[tuple[str, ...], int | None, set[int]]] = {
    "pass": (("--duration", "3s", "--threshold", "answered_rate>=1%"), None, {0, 11}),
    "fail": (("--duration", "3s", "--threshold", "answered_rate<1%"), None, {1}),
    "Ctrl-C": (("--duration", "100s",), signal.SIGINT, {130}),
    "SIGTERM": (("--duration", "100s",), signal.SIGTERM, {143}),
    "kill -9": (("--duration", "100s",), signal.SIGKILL, {-9}),
    "kill -9, session processes": (("--duration", "100s",), signal.SIGKILL, {-9}),
}  # fmt: skip


def wait_until(condition: Callable[[], object], what: Callable[[], object], wait_s: float = 90.0) -> None:
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def playing(run: Run) -> bool:
    return any('"t":"turn"' in path.read_text() for path in run.folder.glob("tmp/*/generator/samples.jsonl"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, int]]:
    """Every ending, side by side: they spend most of their time waiting."""
    runs = {}
    for name, (flags, _, _) in ENDINGS.items():
        pool = 'mode = "subprocess"' if "session" in name else ""
        home = str(tmp_path_factory.mktemp("home"))
        runs[name] = start_run(tmp_path_factory.mktemp("run"), "--rate", "3", *flags, pool=pool, HOME=home)
    codes = {}
    for name, run in runs.items():
        if (signum := ENDINGS[name][1]) is not None:
            wait_until(partial(playing, run), run.own_processes)
            run.process.send_signal(signum)
        run.process.communicate(timeout=120)
        codes[name] = run.process.returncode
    return {name: (run, codes[name]) for name, run in runs.items()}


@pytest.mark.parametrize("name", list(ENDINGS))
def test_nothing_survives(ended: dict[str, tuple[Run, int]], name: str) -> None:
    """No process within its environment, no file in its temporary directory; at once, or soon after a SIGKILL."""
    run, code = ended[name]

    assert code in ENDINGS[name][2]
    if code >= 0:
        assert run.own_processes() == []
    wait_until(lambda: not run.own_processes(), run.own_processes)
    assert _left(run.folder / "tmp") == []


def _left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
