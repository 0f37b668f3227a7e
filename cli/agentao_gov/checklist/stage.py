"""The stage a probe plays on: a real `serve` with the probe's configuration, in a private directory, gone afterwards.

`serve` runs below a warden whose lifeline only this process holds: however the checklist ends (an exception, Ctrl-C,
SIGKILL), the service and everything it started end with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import psutil
import tomli_w

from agentao_gov.checklist.client import ServiceClient
from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.errors import GovError
from agentao_gov.process import warden
from agentao_gov.simulator import Simulator

__all__ = ["Stage", "StageError", "children_of", "patiently"]

#: Starting takes 1.5 s on an idle machine; a loaded CI machine gets a generous guard.
START_S_MAX = 60.0
POLL_S = 0.03
_LOG_LINES = 8
#: By its prefix the governor knows the simulated tokenizer, and reserves a count instead of bytes.
_MODEL = "simulated-checklist"
_MODEL_KEY_VARIABLE = "AGENTAO_GOV_CHECKLIST_KEY"


class StageError(GovError):
    """Raised when the service under test does not start; carries the last lines of its log."""

    code = "stage_failed"
    exit_code = 1


def patiently(seconds: float) -> Iterator[float]:
    """Yields until so much time has passed, with a short rest between: `for _ in patiently(5): if met: break`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left
        time.sleep(POLL_S)


def children_of(pid: int) -> list[psutil.Process]:
    """Everything below a process; empty once it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@dataclass(frozen=True, slots=True)
class _Paths:
    root: Path

    @property
    def config(self) -> Path:
        return self.root / "agentao-gov.toml"

    @property
    def log(self) -> Path:
        return self.root / "serve.log"


class Stage:
    """One running service. Use as a context manager."""

    #: What runs `serve`; the tests' sabotages put a broken product here.
    program: ClassVar[tuple[str, ...]] = (sys.executable, "-m", "agentao_gov.main")

    def __init__(self, config: ProbeConfig, simulator: Simulator) -> None:
        self.config = config
        self.simulator = simulator
        self._paths = _Paths(Path(tempfile.gettempdir()) / f"agentao-gov-checklist-{secrets.token_hex(8)}")
        self._process: subprocess.Popen[bytes] | None = None
        #: Write end of the lifeline; closing it ends the service. -1: closed.
        self._lifeline = -1
        self.port = 0

    def __enter__(self) -> Stage:
        try:
            self._write()
            self._launch()
            self._await_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def base_url(self) -> str:
        """Where the service listens."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, tenant: str | None = None) -> ServiceClient:
        """A tenant's access; the probed tenant's by default."""
        return ServiceClient(self.base_url, self.config.keys[tenant or self.config.tenant])

    @property
    def pid(self) -> int:
        """The service process itself, below its wardens."""
        instance = self.client().status().get("instance")
        return int(instance["pid"]) if isinstance(instance, dict) and "pid" in instance else 0

    def signal(self, signum: int) -> None:
        """Sends a signal as an orchestrator would: to the process it started."""
        assert self._process is not None
        self._process.send_signal(signum)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after so long."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> tuple[str, ...]:
        """The last lines the service wrote."""
        with contextlib.suppress(OSError):
            return tuple(self._paths.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
        return ()

    def end(self) -> None:
        """Ends everything at once and removes the directory. May be called again."""
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)
        if self._process is not None:
            try:
                self._process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._kill(self._process)
        shutil.rmtree(self._paths.root, ignore_errors=True)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        for child in children_of(process.pid):
            with contextlib.suppress(psutil.Error):
                child.send_signal(signal.SIGKILL)
        process.kill()
        process.wait()

    def _write(self) -> None:
        root = self._paths.root
        root.mkdir(mode=0o700)
        profiles = root / "profiles"
        profiles.mkdir()
        self.port = _free_port()
        self.config.deployment["server"]["port"] = self.port
        self._paths.config.write_text(tomli_w.dumps(self.config.deployment))
        (profiles / f"{self.config.profile_name}.toml").write_text(tomli_w.dumps(self.config.profile))

    def _launch(self) -> None:
        read_end, self._lifeline = os.pipe()
        serve = [*self.program, "serve", "--config", str(self._paths.config)]
        model = ["--model", _MODEL, "--base-url", self.simulator.base_url, "--api-key-env", _MODEL_KEY_VARIABLE]
        guard = [sys.executable, "-I", "-S", str(warden.__file__), "--lifeline", str(read_end), "--grace-s", "0", "--"]
        try:
            with self._paths.log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                    [*guard, *serve, *model],
                    cwd=self._paths.root,
                    env=_environment(self._paths.root),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(read_end,),
                    # A Ctrl-C at the terminal is for the checklist, which then ends the service in its own way.
                    start_new_session=True,
                )
        finally:
            os.close(read_end)

    def _await_ready(self) -> None:
        assert self._process is not None
        client = self.client()
        for _ in patiently(START_S_MAX):
            if client.request("GET", "/readyz", timeout_s=2.0).status == 200:
                return
            if self._process.poll() is not None:
                break
        code = self._process.poll()
        what = f"ended with {code}" if code is not None else f"was not ready after {START_S_MAX:.0f} s"
        raise StageError(f"The service {what}: {' | '.join(self.log_tail()) or 'it wrote nothing'}")


def _environment(root: Path) -> dict[str, str]:
    """The caller's environment without what would override the probe's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTAO_GOV", "OPENAI_"))}
    # tiktoken would leave a copy of its table in the temporary directory.
    ours = {"AGENTAO_GOV_STATE": str(root / "state"), "TIKTOKEN_CACHE_DIR": "", "NO_COLOR": "1"}
    return {**kept, **ours, _MODEL_KEY_VARIABLE: "checklist"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
