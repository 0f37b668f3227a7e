"""Starts the real `agentao-gov serve` for a test, talks HTTP to it, and sees that nothing is left of it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import tomli_w

from agentao_gov.simulator import Simulator

#: Hang guards. Starting takes 3 s on an idle machine.
START_S_MAX = 60.0
STOP_S_MAX = 40.0
WAIT_S_MAX = 20.0


def say(prompt: str = "", /, **directive: Any) -> str:
    """A message that scripts the simulated model."""
    return f"{prompt}\n@sim {json.dumps(directive)}"


def wait_until(condition: Callable[[], Any], what: str = "the condition", wait_s: float = WAIT_S_MAX) -> Any:
    """Polls until the condition gives something true, and returns it."""
    deadline = time.monotonic() + wait_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {wait_s:g} s"
        time.sleep(0.02)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code."""
        return str(self.json["error"]["code"])


@dataclass(kw_only=True)
class Client:
    """Talks HTTP to a service."""

    port: int = 0
    key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        sent = dict(headers or {})
        use = key if key is not None else self.key
        if use:
            sent["Authorization"] = f"Bearer {use}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, sent)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **more: Any) -> Answer:
        return self.send("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.send("POST", path, body, **more)

    def turn(self, session: str, message: str, *, profile: str = "qa", user: str = "ann", **more: Any) -> Answer:
        """One native turn."""
        body = {"message": message, "profile": profile, "user": user}
        return self.post(f"/v1/sessions/{session}/turns", body, **more)

    def status(self) -> Any:
        return self.get("/v1/status").json

    def metrics(self) -> dict[str, float]:
        """All samples, `name{labels}` to value, without the prefix."""
        found = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.removeprefix("agentao_gov_")] = float(value)
        return found


@dataclass
class Service(Client):
    """A running service."""

    process: subprocess.Popen[bytes]
    log: Path
    state: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        """The process that serves; the one that was started may be its warden."""
        return int(self.get("/v1/status").json["instance"]["pid"])

    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.lines() if line.get("event") == name]

    def signal(self, signum: int = signal.SIGTERM) -> None:
        self.process.send_signal(signum)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(STOP_S_MAX)

    def stop(self) -> None:
        """Ends it, the hard way after a while, and checks that it left no child."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            for _ in range(6):
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(2)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                self.process.kill()
                self.process.wait()
            gone, alive = psutil.wait_procs(children, timeout=10)
            assert not alive, f"the service left processes behind: {alive}"
            del gone


class Deployment:
    """Writes deployment files and starts services on them."""

    def __init__(self, root: Path, simulator: Simulator) -> None:
        self.root = root
        self.simulator = simulator
        self.services: list[Service] = []
        self.keys: dict[str, str] = {}

    def write(self, **tables: Any) -> Path:
        """The deployment file; tables add to a small default one."""
        config: dict[str, Any] = {
            "server": {"port": 0},
            "state": {"dir": str(self.root / "state")},
            "shutdown": {"lame_duck": "0s", "drain": "5s", "cancel": "3s", "close": "5s", "kill": "1s"},
            "pool": {"queue_timeout": "20s"},
        }
        for name, table in tables.items():
            config[name] = {**config.get(name, {}), **table}
        path = self.root / "agentao-gov.toml"
        path.write_text(tomli_w.dumps(config))
        return path

    def tenants(self, *names: str, **settings: Any) -> dict[str, Any]:
        """A `[tenants]` table with a key for each name."""
        for name in names:
            self.keys[name] = f"key-of-{name}"
        return {
            name: {"api_key_sha256": [hashlib.sha256(self.keys[name].encode()).hexdigest()], **settings}
            for name in names
        }

    def profile(self, name: str, text: str) -> None:
        """A profile of the deployment's own."""
        folder = self.root / "profiles"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.toml").write_text(text)

    def launch(self, *arguments: str, **tables: Any) -> Service:
        """Starts a service without waiting for it."""
        path = self.write(**tables)
        log = self.root / f"service-{len(self.services)}.log"
        environment = {**os.environ, "AGENTAO_GOV_STATE": ""}
        environment.pop("AGENTAO_GOV_STATE")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("agentao-gov")), "serve", "--config", str(path),
                    "--model", "simulated-model", "--base-url", self.simulator.base_url, *arguments,
                ],
                stderr=out, stdout=out, stdin=subprocess.DEVNULL, cwd=self.root, env=environment,
            )  # fmt: skip
        service = Service(process, log, state=self.root / "state")
        self.services.append(service)
        return service

    def start(self, *arguments: str, **tables: Any) -> Service:
        """Starts a service and waits until it is ready."""
        service = self.launch(*arguments, **tables)

        def listening() -> Any:
            assert service.process.poll() is None, service.log.read_text()
            return service.events("listening")

        found = wait_until(listening, "the listener", START_S_MAX)
        service.port = int(found[0]["address"].rpartition(":")[2])
        wait_until(lambda: service.get("/readyz").status == 200, "readiness", START_S_MAX)
        return service

    def close(self) -> None:
        """Stops all services."""
        for service in self.services:
            service.stop()


@contextlib.contextmanager
def running(*jobs: Callable[[], Any]) -> Iterator[list[Any]]:
    """Runs jobs on threads of their own; their results are there after the block."""
    results: list[Any] = [None] * len(jobs)

    def run(n: int, job: Callable[[], Any]) -> None:
        try:
            results[n] = job()
        except Exception as error:  # the test looks at it
            results[n] = error

    threads = [threading.Thread(target=run, args=(n, job), daemon=True) for n, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    yield results
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a job hangs"
