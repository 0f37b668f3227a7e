"""A private `agentao-gov serve`, started as production starts it: same command line, same warden, same environment.

What differs is its place (loopback, a free port, its own state directory), and all of that stands in its deployment
file. It ends with this process, however this process ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import tomli_w

from agentao_gov.endings import ENDINGS
from agentao_gov.errors import GovError
from agentao_gov.testrig.client import ServiceClient
from agentao_gov.testrig.guarded import Guarded

#: Starting takes 1.5 s on an idle machine; a loaded CI machine gets a generous guard.
START_S_MAX = 60.0
#: What an orchestrator waits after SIGTERM, and after the second one.
STOP_S_MAX, STOP_AGAIN_S_MAX = 30.0, 5.0
POLL_S = 0.03
_LOG_LINES = 8


class ServiceStartError(GovError):
    """Raised when the private service does not become ready; the message carries the last lines of its log."""

    ending = ENDINGS["service_start_failed"]

    def __init__(self, message: str, *, ended: bool) -> None:
        """`message`: what happened, with the log's end; `ended`: whether the service ended by itself."""
        super().__init__(message)
        #: Whether it ended by itself, which is the configuration's doing; else it was not ready in time.
        self.ended = ended


def patiently(seconds: float) -> Iterator[float]:
    """Yields the seconds left, with a short rest between: `for _ in patiently(5): if met: break`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        yield left
        time.sleep(POLL_S)


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PrivateService:
    """One service in a directory of its own. Use as a context manager, or `start` and then `stop` or `end`.

    `end` may be called from any thread; everything else belongs to one.
    """

    #: What runs `serve`; tests put a broken product here.
    program: ClassVar[tuple[str, ...]] = (sys.executable, "-P", "-m", "agentao_gov.main")

    def __init__(
        self,
        folder: Path,
        deployment: dict[str, Any],
        *,
        profiles: Mapping[str, Mapping[str, Any]] | None = None,
        keys: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        replaced: tuple[str, ...] = ("AGENTAO_GOV",),
    ) -> None:
        """Nothing is started or written yet.

        Args:
            folder: for the deployment file, the profiles, the state and the log; made if it is missing.
            deployment: the tables of the deployment file. Listener and state directory are set here.
            profiles: tables of profiles by name, if the service is to have them instead of the deployment's own.
            keys: plain API keys by tenant; the first tenant is the one `client` speaks for.
            flags: further options of `serve`, such as the model's.
            environment: variables besides this process's own.
            replaced: prefixes of the environment's variables that the deployment file stands for.
        """
        self.folder = folder
        self.port = free_port()
        #: The process that was started, a warden as a rule; 0 before the start.
        self.root_pid = 0
        self._deployment = deployment
        self._profiles = profiles
        self._keys = dict(keys or {})
        self._flags = tuple(flags)
        self._environment = dict(environment or {})
        self._replaced = replaced
        self._lock = threading.Lock()
        #: The service below its guard; guarded by `_lock`, so that `end` never misses one that is being started.
        self._running: Guarded | None = None
        #: Whether `end` was called: nothing starts any more; guarded by `_lock`.
        self._over = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def state_dir(self) -> Path:
        """Where it keeps its ledger and sessions."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """What it writes to standard output and standard error."""
        return self.folder / "serve.log"

    @property
    def pid(self) -> int:
        """The process that serves, below its wardens; 0 while nothing answers."""
        instance = self.client().status().get("instance")
        return int(instance["pid"]) if isinstance(instance, dict) and "pid" in instance else 0

    def client(self, tenant: str | None = None) -> ServiceClient:
        """A tenant's access, the first tenant's by default; without a key where the service has none."""
        return ServiceClient(self.url, self._keys[tenant] if tenant else next(iter(self._keys.values()), None))

    def start(self) -> None:
        """Starts it and waits until it is ready. Raises ServiceStartError, after which nothing of it is left."""
        try:
            with self._lock:
                self._running = running = self._launch()
            self.root_pid = running.pid
            self._await_ready(running)
        except BaseException:
            self.end()
            raise

    def signal(self, signum: int) -> None:
        """Sends a signal as an orchestrator would: to the process it started."""
        assert self._running is not None
        self._running.process.send_signal(signum)

    def wait(self, timeout_s: float) -> int | None:
        """The exit code, or None when it still runs after so many seconds."""
        return self._running.wait(timeout_s) if self._running is not None else None

    def log_tail(self, lines: int = _LOG_LINES) -> tuple[str, ...]:
        """The last lines it wrote."""
        try:
            return tuple(self.log.read_text(errors="replace").strip().splitlines()[-lines:])
        except OSError:
            return ()

    def stop(self) -> int:
        """Ends it as an orchestrator does, by force where it does not listen; how many processes outlived it."""
        running = self._running
        if running is None:
            return 0
        for wait_s in (STOP_S_MAX, STOP_AGAIN_S_MAX):
            running.process.send_signal(signal.SIGTERM)
            if running.wait(wait_s) is not None:
                break
        running.end()
        return running.left_behind

    def end(self) -> None:
        """Ends everything at once and removes the directory. May be called again, and from another thread."""
        with self._lock:
            self._over = True
            if self._running is not None:
                self._running.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tables = self._deployment
        tables["server"] = {**tables.get("server", {}), "host": "127.0.0.1", "port": self.port}
        if "metrics" in tables["server"]:
            # Who may read the figures is no limit, and the admin's key is not known here.
            tables["server"]["metrics"] = "open"
        tables["state"] = {"dir": str(self.state_dir)}
        if self._profiles is not None:
            tables["profiles"] = {"dir": "profiles"}
            (self.folder / "profiles").mkdir()
            for name, table in self._profiles.items():
                (self.folder / "profiles" / f"{name}.toml").write_text(tomli_w.dumps(table))
        (self.folder / "agentao-gov.toml").write_text(tomli_w.dumps(tables))

    def _launch(self) -> Guarded:
        if self._over:
            raise ServiceStartError("The service was ended before it began.", ended=False)
        self._write()
        serve = [*self.program, "serve", "--config", str(self.folder / "agentao-gov.toml"), *self._flags]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(self._replaced)}
        with self.log.open("wb") as log:
            return Guarded(serve, cwd=self.folder, env={**kept, **self._environment}, output=log)

    def _await_ready(self, running: Guarded) -> None:
        client = self.client()
        for _ in patiently(START_S_MAX):
            if client.request("GET", "/readyz", timeout_s=2.0).status == 200:
                return
            if running.process.poll() is not None:
                break
        code = running.process.poll()
        what = f"ended with {code}" if code is not None else f"was not ready after {START_S_MAX:.0f} s"
        said = " | ".join(self.log_tail()) or "it wrote nothing"
        raise ServiceStartError(f"The service {what}: {said}", ended=code is not None)
