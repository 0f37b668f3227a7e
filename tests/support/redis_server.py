"""A Redis or Valkey server of a test's own, on a socket in a private directory, that can be stopped and damaged."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

__all__ = ["RedisServer", "redis_server"]


def _program() -> str:
    """The server's program; skips the test where none is installed."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        pytest.skip("no redis-server or valkey-server here: `apt-get install redis-server` runs these tests too")
    return found


class RedisServer:
    """Runs in `directory`, whose path has to be short: a socket's is."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "s"
        self.url = f"unix://{self.path}"
        self._command = [_program(), "--port", "0", "--unixsocket", str(self.path), "--dir", str(directory)]
        self._command += ["--save", ""]
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 15
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.path)) == 0:
                    return
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < give_up, "the server does not listen"
            time.sleep(0.01)

    def kill(self) -> None:
        """What it had in memory is lost."""
        self.close()
        self.path.unlink(missing_ok=True)

    def lose_everything(self) -> None:
        """It is killed and starts again without its data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It keeps its connections and answers nobody."""
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, *words: str) -> object:
        """One command, as an operator would give it."""
        import redis

        with closing(redis.Redis.from_url(self.url, decode_responses=True)) as client:
            answer: object = client.execute_command(*words)  # type: ignore[no-untyped-call]
            return answer

    def close(self) -> None:
        """Ends it without a farewell."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that this test alone uses, and may damage."""
    own = RedisServer(tmp_path_factory.mktemp("r"))
    yield own
    own.close()
