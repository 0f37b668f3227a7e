"""A model's own process on this machine: it says its port on standard output, and ends with its standard input."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

STOP_S_MAX = 5.0


class ChildEndedError(Exception):
    """The process ended before it served; its text is what it wrote to standard error."""

    def __init__(self, said: str, code: int) -> None:
        super().__init__(said)
        self.code = code


class LocalProcess:
    """A running model. Use as a context manager or call `close()`; it also dies with its parent."""

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

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float) -> tuple[int, Any]:
        """Asks the process over HTTP: `method` and `path`; returns the status and the JSON of one answer.

        `body`: sent as JSON; None sends nothing. `timeout_s`: seconds for connecting and for each read. Raises OSError,
        HTTPException, ValueError.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def spawn(
    module: str, arguments: Sequence[str], *, env: Mapping[str, str], first_line: bytes = b""
) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a module of ours and waits for its port; returns the process and the port.

    Args:
        module: its dotted name.
        arguments: of its command line.
        env: variables besides this process's own.
        first_line: written to its standard input, with its end of line.

    Raises ChildEndedError where it ends instead.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **env},
            # A Ctrl-C at the terminal is for the turn, not for the model it talks to.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # A broken pipe: it has ended already, and its last words say why.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(first_line)
                process.stdin.flush()
            line = process.stdout.readline()
        except BaseException:
            process.kill()
            _reap(process)
            raise
        if not line:
            _reap(process)
            log.seek(0)
            raise ChildEndedError(log.read().decode(errors="replace").strip(), process.returncode)
    return process, int(json.loads(line)["port"])


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Waits for a process that will not serve, and closes its pipes."""
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
