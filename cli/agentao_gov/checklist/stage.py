"""The stage a probe plays on: a real `serve` with the probe's configuration, in a private directory, gone afterwards.

`serve` runs below a warden whose lifeline only this process holds: however the checklist ends (an exception, Ctrl-C,
SIGKILL), the service and everything it started end with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import tomli_w

from agentao_gov.checklist.scaling import ProbeConfig
from agentao_gov.errors import GovError
from agentao_gov.simulator import Simulator
from agentao_gov.testrig.client import ServiceClient
from agentao_gov.testrig.guarded import Guarded

__all__ = ["Stage", "StageError", "patiently"]

#: Starting takes 1.5 s on an idle machine; a loaded CI machine gets a generous guard.
START_S_MAX = 60.0
POLL_S = 0.03
_LOG_LINES = 8
STATE = "state"
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
    program: ClassVar[tuple[str, ...]] = (sys.executable, "-P", "-m", "agentao_gov.main")

    def __init__(self, config: ProbeConfig, simulator: Simulator) -> None:
        self.config = config
        self.simulator = simulator
        self._paths = _Paths(Path(tempfile.gettempdir()) / f"agentao-gov-checklist-{secrets.token_hex(8)}")
        self._lock = threading.Lock()
        #: The service below its warden; guarded by `_lock`, so that `end` never misses one that is being started.
        self._service: Guarded | None = None
        #: Whether `end` was called: nothing starts any more; guarded by `_lock`.
        self._over = False
        self.port = 0

    def __enter__(self) -> Stage:
        try:
            with self._lock:
                self._service = self._begin()
            self._await_ready(self._service)
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
    def state_dir(self) -> Path:
        """Where this service keeps its ledger and sessions."""
        return self._paths.root / STATE

    @property
    def pid(self) -> int:
        """The service process itself, below its wardens."""
        instance = self.client().status().get("instance")
        return int(instance["pid"]) if isinstance(instance, dict) and "pid" in instance else 0

    def signal(self, signum: int) -> None:
        """Sends a signal as an orchestrator would: to the process it started."""
        assert self._service is not None
        self._service.process.send_signal(signum)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after so long."""
        assert self._service is not None
        return self._service.wait(timeout_s)

    def log_tail(self) -> tuple[str, ...]:
        """The last lines the service wrote."""
        with contextlib.suppress(OSError):
            return tuple(self._paths.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:])
        return ()

    def end(self) -> None:
        """Ends everything at once and removes the directory. May be called again, and from another thread."""
        with self._lock:
            self._over = True
            if self._service is not None:
                self._service.end()
            shutil.rmtree(self._paths.root, ignore_errors=True)

    def _begin(self) -> Guarded:
        if self._over:
            raise StageError("The walk is over.")
        self._write()
        return self._launch()

    def _write(self) -> None:
        root = self._paths.root
        root.mkdir(mode=0o700)
        profiles = root / "profiles"
        profiles.mkdir()
        self.port = _free_port()
        self.config.deployment["server"]["port"] = self.port
        self._paths.config.write_text(tomli_w.dumps(self.config.deployment))
        for name, table in {self.config.profile_name: self.config.profile, **self.config.more_profiles}.items():
            (profiles / f"{name}.toml").write_text(tomli_w.dumps(table))

    def _launch(self) -> Guarded:
        serve = [*self.program, "serve", "--config", str(self._paths.config), "--workers", str(self.config.workers)]
        model = ["--model", _MODEL, "--base-url", self.simulator.base_url, "--api-key-env", _MODEL_KEY_VARIABLE]
        with self._paths.log.open("wb") as log:
            root = self._paths.root
            return Guarded([*serve, *model], cwd=root, env=_environment(root), output=log)

    def _await_ready(self, service: Guarded) -> None:
        client = self.client()
        for _ in patiently(START_S_MAX):
            if client.request("GET", "/readyz", timeout_s=2.0).status == 200:
                return
            if service.process.poll() is not None:
                break
        code = service.process.poll()
        what = f"ended with {code}" if code is not None else f"was not ready after {START_S_MAX:.0f} s"
        raise StageError(f"The service {what}: {' | '.join(self.log_tail()) or 'it wrote nothing'}")


def _environment(root: Path) -> dict[str, str]:
    """The caller's environment without what would override the probe's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTAO_GOV", "OPENAI_"))}
    # tiktoken would leave a copy of its table in the temporary directory.
    ours = {"AGENTAO_GOV_STATE": str(root / STATE), "TIKTOKEN_CACHE_DIR": "", "NO_COLOR": "1"}
    return {**kept, **ours, _MODEL_KEY_VARIABLE: "checklist"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
