"""A service's state directory with two tenants in it, and a process beside: what stands there must stay as it is."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from agentao_gov.clock import Deadline
from agentao_gov.governor import GovernedSession, SessionKey, TurnReport
from agentao_gov.process.sandbox import SandboxLayers
from tests.attacks import neighbour
from tests.attacks.commands import GOT_THROUGH
from tests.governor.harness import Harness, say

__all__ = ["SECRET", "Arena"]

#: Nowhere in what an attacker gets.
SECRET = "canary-4711-unheard"
CODE: dict[str, Any] = {
    "permission_mode": "workspace-write",
    "allow": [
        "read_file",
        "glob",
        "search_file_content",
        "list_directory",
        "write_file",
        "replace",
        "run_shell_command",
    ],
}


def _print_of(path: Path) -> tuple[Any, ...]:
    found = path.lstat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return path.name, found.st_mode, found.st_uid, found.st_nlink if path.is_file() else 0, found.st_mtime_ns, content


class Arena:
    """Tenant `acme`, whom nobody may harm, and tenant `evil`; a process beside them stands for the service."""

    def __init__(self, harness: Harness, root: Path, layers: SandboxLayers) -> None:
        self._harness = harness
        self._layers = layers
        self.state = root / "state"
        self.victim = self._make("t-acme", "secret.txt", f"{SECRET}\n")
        self._make("t-acme", "plan.txt", "the plan\n")
        self.home = self._make("t-evil", "own.txt", "my own text\n")
        (self.state / "agentao-gov.toml").write_text(f'[tenants.acme]\napi_key_sha256 = ["{SECRET}"]\n')
        run = root / "run"
        run.mkdir()
        self._run = run
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", neighbour.__file__, str(run), SECRET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.victim,
            env={"OPENAI_API_KEY": SECRET, "HOME": str(self.victim)},
        )
        assert self.process.stdout is not None
        self._facts = json.loads(self.process.stdout.readline())
        self._before = self._state_of_others()

    def _make(self, tenant: str, name: str, text: str) -> Path:
        where = self.state / "sessions" / tenant / "s1" / "work"
        where.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)
        return where

    def filled(self, command: str) -> str:
        """The command with names and numbers of this arena for the words in capitals."""
        places = {
            "VICTIM": self.victim,
            "STATE": self.state,
            "PID": self.process.pid,
            "PORT": self._facts["port"],
            "SEGMENT": self._facts["segment"],
            "RINGKEY": self._facts["key"],
            "SOCKET": self._run / "socket",
            "REALHOME": Path.home(),
            "PYTHON": "/usr/bin/python3",
        }
        for word, place in places.items():
            command = command.replace(f"@{word}", str(place))
        return command

    def open(self, **tools: Any) -> GovernedSession:
        """A session of tenant `evil`."""
        limits = {"turn_timeout": 60, "tool_timeout": 20}
        spec = dataclasses.replace(
            self._harness.spec("evil", tools={**CODE, **tools}, limits=limits),
            key=SessionKey("evil", "s1"),
            workdir=self.home,
        )
        governor = self._harness.governor(sandbox_layers=lambda: self._layers)
        session = governor.open(spec, None, Deadline.after(30))
        self._harness.opened.append(session)
        return session

    def call(self, name: str, *, tools: dict[str, Any] | None = None, **arguments: Any) -> TurnReport:
        """One call of a tool in a new session of tenant `evil`."""
        return self.ask(self.open(**(tools or {})), name, **arguments)

    def ask(self, session: GovernedSession, name: str, **arguments: Any) -> TurnReport:
        """One call of a tool."""
        return self._harness.ask(session, say(text="after", tool={"name": name, "args": arguments}))

    def shell(self, command: str, **tools: Any) -> TurnReport:
        """One shell command of tenant `evil`."""
        return self.call("run_shell_command", tools=tools, command=self.filled(command))

    def told(self) -> str:
        """What the model of the last session was told."""
        messages = self._harness.opened[-1].snapshot().messages
        return "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")

    def loot(self) -> Iterator[str]:
        """Where the secret stands among what the attacker got."""
        for word in (SECRET, GOT_THROUGH):
            if word in self.told():
                yield f"the model was told {word}"
        for path in self.home.rglob("*"):
            if path.is_file() and path.lstat().st_nlink == 1 and not path.is_symlink():
                if SECRET.encode() in path.read_bytes():
                    yield str(path)
            elif path.is_file() and not path.is_symlink():
                yield f"{path} has another name"

    def damage(self) -> list[str]:
        """What is not as it was."""
        now = self._state_of_others()
        return [f"{name}: {self._before[name]} became {now[name]}" for name in now if now[name] != self._before[name]]

    def _state_of_others(self) -> dict[str, Any]:
        files = [
            *(self.state / "sessions" / "t-acme").rglob("*"),
            self.state / "agentao-gov.toml",
            *(path for path in (Path.home() / ".bashrc", Path("/etc/passwd")) if path.exists()),
        ]
        process = psutil.Process(self.process.pid)
        running = process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
        return {
            "files": sorted(map(_print_of, files)),
            "state": (self.state.stat().st_mode, (self.state / "sessions").stat().st_mode),
            "running": running,
            "nice": process.nice() if running else None,
            "processors": process.cpu_affinity() if running else None,
            "limits": resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE) if running else None,
            "reached": (self._run / "reached").exists(),
        }

    def left_over(self) -> tuple[int, ...]:
        """Processes that outlive the attacker's turn."""
        return self._harness.opened[-1].process_ids()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(5)
        finally:
            self.process.kill()
            self.process.wait()
            # What the kernel keeps where the process was killed.
            ctypes.CDLL(None).shmctl(self._facts["segment"], 0, None)
            Path(f"/dev/shm/neighbour-{self.process.pid}").unlink(missing_ok=True)
