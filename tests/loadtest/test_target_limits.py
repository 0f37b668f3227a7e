"""What a service may use is read from the process that serves, from its control groups and from its own words."""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentao_gov.loadtest.target import Target, existing_target, group_limit, limits_of, oom_kills, promised_by
from agentao_gov.process.owner import host_token
from tests.loadtest.conftest import Stub

Starter = Callable[..., Stub]
#: Starts the stub below it with fewer descriptors than its own: a warden above a service.
ABOVE = """
import resource, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "tests.loadtest.stub", "{}"], stdin=sys.stdin, stdout=sys.stdout,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (77, 77)))
child.wait()
"""


@contextlib.contextmanager
def listening(body: bytes, moved_to: str = "") -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """A service that answers every GET with this, or sends it on; its URL, and each path and key that it was asked."""
    heard: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers["Authorization"]))
            self.send_response(302 if moved_to else 200)
            self.send_header("Location", moved_to)
            self.end_headers()
            self.wfile.write(b"" if moved_to else body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


def test_the_limits_are_those_of_the_process_that_serves(tmp_path: Path) -> None:
    """Not of the one above it, whose soft limit may be another."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", ABOVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root
    ) as above:
        assert above.stdout is not None
        assert above.stdin is not None
        target = Target(f"http://127.0.0.1:{int(above.stdout.readline())}", {}, ("t",), found_pid=above.pid)
        found = limits_of(target, {"max_busy": 3, "memory_bytes": 1024})
        above.stdin.close()

    assert found.fds == 77
    assert found.max_busy == 3
    assert (found.memory_bytes, found.memory_by) == (1024, "[capacity] memory")
    assert found.cores


def test_without_a_process_there_is_what_was_said() -> None:
    """A service on another machine."""
    found = limits_of(Target("http://10.0.0.1", {}, ("t",)), {"max_sessions": 9})

    assert (found.max_sessions, found.fds, found.memory_bytes) == (9, None, None)


def test_a_service_that_says_nothing_of_its_limits_is_taken_as_it_is(stub: Starter) -> None:
    """Another kind of service answers something else, or nothing."""
    assert promised_by(stub().url, None) == {}
    assert promised_by("http://127.0.0.1:1", "key") == {}


def test_a_key_goes_to_the_target_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to a proxy that the environment names nor to where the target sends the caller on."""
    said = b'{"pool": {"max_sessions": 9, "max_busy": 3}}'
    with (
        listening(said) as (other, overheard),
        listening(said) as (target, heard),
        listening(said, moved_to=other) as (moved, sent_on),
    ):
        monkeypatch.setenv("http_proxy", other)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)

        assert promised_by(f"{target}/base/v1", "key") == {"max_sessions": 9, "max_busy": 3}
        assert promised_by(moved, "key") == {}

    assert heard == [("/base/v1/status", "Bearer key")]
    assert sent_on == [("/v1/status", "Bearer key")]
    assert overheard == []


@pytest.mark.parametrize(("host", "seen"), [(host_token(), True), ("another machine", False)])
def test_the_process_under_load_is_the_one_that_the_service_names(host: str, seen: bool) -> None:
    """Not whoever listens on the port of this machine: that may be a proxy of a service elsewhere."""
    instance = {"instance": {"pid": 4711, "host": host}}
    with listening(json.dumps(instance).encode()) as (url, _):
        target = existing_target(url, api_key=None)

    assert target.found_pid == (4711 if seen else None)


@pytest.mark.parametrize(
    ("line", "files", "limit", "kills"),
    [
        ("0::/a/b", {"a/memory.max": "900", "a/b/memory.max": "max", "a/b/memory.events": "oom 9\noom_kill 2"}, 900, 2),
        ("0::/a", {"a/memory.max": "max"}, None, None),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": "700", "memory/a/memory.oom_control": "under_oom 0\noom_kill 1"},
            700,
            1,
        ),
        ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "700"}, None, None),
    ],
)
def test_the_least_limit_of_the_control_groups_counts(
    line: str, files: dict[str, str], limit: int | None, kills: int | None, tmp_path: Path
) -> None:
    """Of both versions, those above too; kills are counted in the group itself."""
    for name, text in {"proc/1/cgroup": line, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    assert group_limit(1, proc=tmp_path / "proc", cgroups=tmp_path) == limit
    assert oom_kills(1, proc=tmp_path / "proc", cgroups=tmp_path) == kills


def test_a_process_that_is_gone_has_no_limits() -> None:
    """Nobody raises."""
    assert group_limit(2**22 + 1) is None
    assert oom_kills(2**22 + 1) is None
    assert oom_kills(None) is None
