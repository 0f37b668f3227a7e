"""Whatever a guard starts ends with whoever started it, and says what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agentao_gov.testrig.guarded import Guarded, private_folder

#: Says its pid, then sleeps whatever it is told.
STUBBORN = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); "
    "time.sleep(600)"
)
#: Leaves a process of its own behind and ends with 7.
LEAVING = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
    "start_new_session=True); sys.exit(7)"
)
#: Starts the stubborn one below a guard in a private folder, says all about it, and is killed.
OWNER = f"""
import os, signal, sys
from pathlib import Path
from agentao_gov.testrig.guarded import Guarded, private_folder
with private_folder("guarded-test-") as folder:
    guarded = Guarded([sys.executable, "-c", {STUBBORN!r}], cwd=folder, env=os.environ, output=None)
    print(folder, guarded.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[list[Guarded]]:
    """Keeps what a test starts, and ends it."""
    started: list[Guarded] = []
    yield started
    for each in started:
        each.end()


def start(started: list[Guarded], text: str, folder: Path) -> Guarded:
    with (folder / "out").open("wb") as output:
        started.append(Guarded([sys.executable, "-c", text], cwd=folder, env=os.environ, output=output))
    return started[-1]


def test_the_pid_is_the_programs_own_and_end_kills_what_listens_to_nothing(
    program: list[Guarded], tmp_path: Path
) -> None:
    """Not the guard's above it; a program that ignores SIGTERM is gone when `end` returns."""
    guarded = start(program, STUBBORN, tmp_path)
    running = psutil.Process(guarded.pid)

    guarded.end()

    assert running.pid != guarded.process.pid
    assert not running.is_running()


def test_it_ends_with_the_programs_code_and_counts_what_the_program_left(
    program: list[Guarded], tmp_path: Path
) -> None:
    """An orphan is killed, and it is not overlooked that there was one."""
    guarded = start(program, LEAVING, tmp_path)

    assert guarded.wait(30) == 7
    assert guarded.left_behind == 1


def test_a_killed_owner_takes_its_program_and_its_folder_along() -> None:
    """SIGKILL leaves nobody a chance to clean up; the end of a pipe does it."""
    done = subprocess.run([sys.executable, "-c", OWNER], capture_output=True, text=True, check=False, timeout=60)
    folder, pid = done.stdout.splitlines()[0].split()

    assert done.returncode == -signal.SIGKILL
    if psutil.pid_exists(int(pid)):
        psutil.wait_procs([psutil.Process(int(pid))], timeout=15)
    assert not psutil.pid_exists(int(pid))
    removers = [p for p in psutil.process_iter() if folder in _command_line(p)]
    psutil.wait_procs(removers, timeout=15)
    assert not Path(folder).exists()


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def test_a_private_folder_is_gone_after_its_block() -> None:
    """It is its owner's alone meanwhile."""
    with private_folder("guarded-test-") as folder:
        (folder / "file").write_text("x")
        mode = folder.stat().st_mode & 0o777

    assert mode == 0o700
    assert not folder.exists()
