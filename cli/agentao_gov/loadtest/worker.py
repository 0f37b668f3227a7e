"""A worker of a master on another machine: Locust in a process of its own, nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from agentao_gov.errors import UsageError
from agentao_gov.resources import shipped

__all__ = ["run_worker", "split_address"]

DEFAULT_PORT = 5557


def split_address(text: str) -> tuple[str, int]:
    """`HOST` or `HOST:PORT`. Raises UsageError."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not HOST or HOST:PORT.")
    return host, int(port)


def run_worker(master: str) -> int:
    """Serves the master until it has finished; the worker's exit code. Plan and keys come from the master."""
    host, port = split_address(master)
    suite = shipped("loadtests")
    command = [sys.executable, "-P", "-m", "locust", "-f", str(suite / "locustfile.py"), "--worker"]
    command += ["--master-host", host, "--master-port", str(port)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    own = {"AGENTAO_GOV_LOADTEST": "worker", "AGENTAO_GOV_LOADTEST_PARENT": str(os.getpid())}
    # In our own folder: Locust puts the directory it runs in first on its module path, whatever -P says.
    process = subprocess.Popen(command, env=env | own, stdin=subprocess.DEVNULL, cwd=suite)  # noqa: S603
    try:
        return process.wait()
    except (KeyboardInterrupt, SystemExit):
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
