"""Starts the simulator as a process of its own and talks to its control endpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from agentao_gov.errors import InternalError
from agentao_gov.simulator.child import ChildEndedError, LocalProcess, spawn
from agentao_gov.simulator.script import Behaviour, Script, load_limits, load_script
from agentao_gov.simulator.truth import Truth

LimitsSource = dict[str, Any] | str | Path | None
ScriptSource = Script | Behaviour | dict[str, Any] | str | Path | None


class Simulator(LocalProcess):
    """A running simulator. Use as a context manager or call `close()`; it also dies with its parent."""

    def truth(self, *, requests: bool = True) -> Truth:
        """What it received and produced so far; `requests`: with a record of each request."""
        return Truth.model_validate(self._call("GET", f"/sim/truth?requests={int(requests)}"))

    def reset(self) -> None:
        """Forgets everything, drops what is in flight, and goes back to the script it was started with."""
        self._call("POST", "/sim/reset", {})

    def configure(self, script: ScriptSource) -> None:
        """Takes another `script` from the next request on. Raises ConfigError for a wrong one."""
        self._call("POST", "/sim/configure", load_script(script).model_dump(mode="json", exclude_unset=True))

    def release(self, name: str, *, stay_open: bool = False) -> int:
        """Lets requests on hold under `name` go; returns how many. `stay_open`: later ones pass too."""
        return int(self._call("POST", "/sim/release", {"name": name, "stay_open": stay_open})["released"])

    def wait_for(self, *, timeout_s: float = 10.0, idle: bool = False, **at_least: int) -> Truth:
        """Waits, `timeout_s` seconds at most, until every count in `at_least` is reached.

        The counts: `calls`, `answered`, `refused`, `client_gone`, `in_flight`, `queued`, `held`. `idle` waits until
        nothing is in flight. Raises TimeoutError with the counts there were.
        """
        query = urlencode({"timeout": timeout_s, "idle": int(idle), **at_least})
        status, body = self.ask("GET", f"/sim/wait?{query}", timeout_s=timeout_s + 5.0)
        truth = Truth.model_validate(body)
        if status != 200:
            wanted = ", ".join(f"{name} >= {least}" for name, least in at_least.items()) or "idle"
            raise TimeoutError(f"The simulator did not reach {wanted} within {timeout_s:g} s: {truth.total!r}")
        return truth

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.ask(method, path, body, timeout_s=10.0)
        if status != 200:
            raise InternalError(f"The simulator answered {status} to {method} {path}: {answer}")
        return answer


def start_simulator(
    script: ScriptSource = None, *, seed: int | None = None, port: int = 0, limits: LimitsSource = None
) -> Simulator:
    """Starts a simulator on loopback; the caller closes it.

    `script`: what it answers, as values, a file's path or None for its default. `seed` overrides the script's. `port`:
    0 takes a free one. `limits`: the provider's, as values or a file's path, in place of the script's. Raises
    ConfigError for a wrong script or limits, InternalError when the process does not come up.
    """
    loaded = load_script(script)
    if seed is not None:
        loaded = loaded.model_copy(update={"seed": seed})
    if limits is not None:
        loaded = loaded.model_copy(update={"capacity": load_limits(limits)})
    script_line = json.dumps(loaded.model_dump(mode="json", exclude_unset=True)).encode() + b"\n"
    try:
        process, bound = spawn(
            "agentao_gov.simulator",
            ["--lifeline", "--port", str(port)],
            # tiktoken would leave a copy of its table in the temporary directory.
            env={"TIKTOKEN_CACHE_DIR": ""},
            first_line=script_line,
        )
    except ChildEndedError as error:
        raise InternalError(f"The simulator did not start: {error}") from None
    return Simulator(process, bound)
