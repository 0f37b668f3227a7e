"""Makes the real `serve` leak, for tests: with this folder on PYTHONPATH and LEAKY_SERVE set to what it leaks.

`bytes`: 50 KB a turn · `fds`: a descriptor a session · `children`: a process a session. Everything else is the real
service: its warden, pool, governor and HTTP. Only the service's own process is touched (the one right below its
warden), so that the load generator, the simulator and the command itself stay as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

KINDS = ("bytes", "fds", "children")
A_TURN = 50 * 1024


def _is_service() -> bool:
    if "agentao_gov.main" not in sys.orig_argv or "serve" not in sys.orig_argv:
        return False
    return Path(f"/proc/{os.getppid()}/comm").read_text().strip() in ("gov-warden", "gov-init")


def _leak(kinds: list[str]) -> None:
    import agentao_gov.runtime as runtime
    from agentao_gov.governor.turn import NullObserver

    class Leaks(NullObserver):
        """Keeps what it should let go."""

        def __init__(self) -> None:
            self.hoard: list[Any] = []
            self.sessions: set[Any] = set()

        def turn_started(self, labels: Any) -> None:
            import subprocess

            if "bytes" in kinds:
                self.hoard.append(bytearray(os.urandom(A_TURN)))
            if labels.key in self.sessions:
                return
            self.sessions.add(labels.key)
            if "fds" in kinds:
                self.hoard.append(os.open(os.devnull, os.O_RDONLY))
            if "children" in kinds:
                self.hoard.append(subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL))

    build = runtime.build_runtime

    def leaky(*args: Any, **kwargs: Any) -> Any:
        made = build(*args, **kwargs)
        made.observe(Leaks())
        return made

    runtime.build_runtime = leaky


if (wanted := os.environ.get("LEAKY_SERVE")) and _is_service():
    _leak([kind for kind in wanted.split(",") if kind in KINDS])
