"""Runs the real `agentao-gov loadtest` on a real service of its own, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LEAKY, BOUNDED = (Path(__file__).parent / name for name in ("leaky", "bounded"))
#: A profile whose turns give up soon, so that faults end within a test.
BRISK = """
extends = "qa"
name = "brisk"
description = "Short limits."
task = "qa"
tier = "interactive"
[limits]
turn_timeout = "4s"
tool_timeout = "1s"
max_iterations = 2
llm_retries = 0
[on_limit]
max_iterations = "stop"
"""


@dataclass
class Run:
    """A load test that is running or has ended."""

    process: subprocess.Popen[bytes]
    folder: Path

    def end(self, wait_s: float = 160.0) -> tuple[int, dict[str, Any], str]:
        """Exit code, what `--json` printed, and standard error."""
        out, err = self.process.communicate(timeout=wait_s)
        return self.process.returncode, json.loads(out), err.decode()

    def own_processes(self) -> list[str]:
        """Command lines of everything that still runs in this run's environment, the command itself included."""
        import psutil

        mark, found = f"LOADTEST_TEST_RUN={self.folder}", []
        for process in psutil.process_iter():
            try:
                if mark in (f"{name}={value}" for name, value in process.environ().items()):
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
            except psutil.Error:
                continue
        return found


def start_run(
    folder: Path,
    *flags: str,
    pool: str = "",
    more: str = "",
    leak: str | None = None,
    bounds: Mapping[str, Any] | None = None,
    **env: str,
) -> Run:
    """Starts it in `folder`, with `brisk` as the one profile.

    `leak` makes the service it starts leak; `bounds` narrows what each of its processes may use.
    """
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / "brisk.toml").write_text(BRISK)
    busy = "" if "max_busy" in pool else "max_busy = 32"
    (folder / "agentao-gov.toml").write_text(f'[profiles]\ndir = "profiles"\n[pool]\n{busy}\n{pool}\n{more}\n')
    (folder / "tmp").mkdir(exist_ok=True)
    environ = {**os.environ, "TMPDIR": str(folder / "tmp"), "LOADTEST_TEST_RUN": str(folder), **env}
    if leak is not None:
        environ |= {"PYTHONPATH": _ahead_of(environ, LEAKY), "LEAKY_SERVE": leak}
    if bounds is not None:
        environ |= {"PYTHONPATH": _ahead_of(environ, BOUNDED), "BOUNDED": json.dumps(bounds)}
    command = [sys.executable, "-m", "agentao_gov.main", "loadtest", "--config", "agentao-gov.toml", "--mix", "brisk=1"]
    command += ["--no-checklist", "--think", "0", "--first-token", "30ms", "--per-token", "1ms", "--json", *flags]
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return Run(process, folder)


def _ahead_of(environ: Mapping[str, str], folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), environ.get("PYTHONPATH"))))
