"""Starts the simulator as a process of its own and talks to its control endpoints."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from agentao_gov.errors import InternalError
from agentao_gov.simulator.script import Behaviour, Script, load_script
from agentao_gov.simulator.truth import Truth

__all__ = ["Simulator", "start_simulator"]

#: Starting takes 0.3 s on an idle machine; a loaded CI machine gets a generous guard.
START_S_MAX = 30.0
STOP_S_MAX = 5.0

ScriptSource = Script | Behaviour | dict[str, Any] | str | Path | None


class Simulator:
    """A running simulator. Use as a context manager or call `close()`; it also dies with its parent."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def truth(self, *, requests: bool = True) -> Truth:
        """What it received and produced so far."""
        return Truth.model_validate(self._call("GET", f"/sim/truth?requests={int(requests)}"))

    def reset(self) -> None:
        """Forgets everything, drops what is in flight, and goes back to the script it was started with."""
        self._call("POST", "/sim/reset", {})

    def configure(self, script: ScriptSource) -> None:
        """Takes another script from the next request on."""
        self._call("POST", "/sim/configure", load_script(script).model_dump(mode="json", exclude_unset=True))

    def release(self, name: str, *, stay_open: bool = False) -> int:
        """Lets requests on hold under this name go; returns how many. `stay_open`: later ones pass too."""
        return int(self._call("POST", "/sim/release", {"name": name, "stay_open": stay_open})["released"])

    def wait_for(self, *, timeout_s: float = 10.0, idle: bool = False, **at_least: int) -> Truth:
        """Waits until counts are reached: `calls`, `answered`, `refused`, `client_gone`, `in_flight`, `queued`, `held`.

        `idle` waits until nothing is in flight. Raises TimeoutError with the counts there were.
        """
        query = urlencode({"timeout": timeout_s, "idle": int(idle), **at_least})
        status, body = self._send("GET", f"/sim/wait?{query}", None, timeout_s + 5.0)
        truth = Truth.model_validate(body)
        if status != 200:
            wanted = ", ".join(f"{name} >= {least}" for name, least in at_least.items()) or "idle"
            raise TimeoutError(f"The simulator did not reach {wanted} within {timeout_s:g} s: {truth.total!r}")
        return truth

    def close(self) -> None:
        """Ends the process and waits for its end. May be called again."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self._send(method, path, body, 10.0)
        if status != 200:
            raise InternalError(f"The simulator answered {status} to {method} {path}: {answer}")
        return answer

    def _send(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


def start_simulator(script: ScriptSource = None, *, seed: int | None = None, port: int = 0) -> Simulator:
    """Starts a simulator on a free loopback port; `seed` overrides the script's.

    Raises ConfigError for a wrong script, InternalError when the process does not come up.
    """
    loaded = load_script(script)
    if seed is not None:
        loaded = loaded.model_copy(update={"seed": seed})
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "agentao_gov.simulator", "--lifeline", "--port", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            # tiktoken would leave a copy of its table in the temporary directory.
            env={**os.environ, "TIKTOKEN_CACHE_DIR": ""},
            # A Ctrl-C at the terminal is for the turn, not for the model it talks to.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(loaded.model_dump(mode="json", exclude_unset=True)).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            process.wait()
            process.stdin.close()
            process.stdout.close()
            errors.seek(0)
            raise InternalError(f"The simulator did not start: {errors.read().decode(errors='replace').strip()}")
    return Simulator(process, json.loads(line)["port"])
