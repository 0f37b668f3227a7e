"""Session processes that start from nothing: a tenant's own Python, and what they take with them of the service's."""

from __future__ import annotations

import dataclasses
import http.server
import sys
import threading
import urllib.parse
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from agentao_gov.clock import Deadline
from agentao_gov.errors import ConfigError, InternalError
from agentao_gov.worker.factory import SubprocessFactory
from tests.governor.harness import HANG_S, say
from tests.worker.sessions import Subprocesses, alive, worker_pid


def test_a_tenant_s_own_python_starts_cold(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """Another interpreter, named by the tenant: no zygote, the same session."""
    spec = subprocesses.spec()
    subprocesses.factory = make_factory(pythons={spec.key.tenant: sys.executable}, ready=0)
    host = subprocesses.factory.open(spec, None, Deadline.after(30))
    subprocesses.opened.append(host)

    report = subprocesses.ask(host, say(text="cold"))

    assert report.answer == "cold"
    assert Path(f"/proc/{worker_pid(host)}/cmdline").read_bytes().split(b"\0")[1:4] == [
        b"-P",
        b"-m",
        b"agentao_gov.worker.child",
    ]


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes what is meant for another host on to the simulated model."""

    model = ""
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = self.model + urllib.parse.urlsplit(self.path).path
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG_S) as answer:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.read())

    def log_message(self, *_: object) -> None:
        """Not to standard error."""


@pytest.mark.parametrize("how", ["cold", "forked"])
def test_a_session_process_reaches_its_model_through_the_service_s_proxy(
    subprocesses: Subprocesses,
    make_factory: Callable[..., SubprocessFactory],
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """Behind a proxy it would else reach none, in this mode alone. Its password is not there for tools to read."""
    spec = subprocesses.spec()
    monkeypatch.setattr(Proxy, "model", subprocesses.simulator.base_url.removesuffix("/v1"))
    monkeypatch.setattr(Proxy, "asked", [])
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, base_url="http://model.example/v1"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://svc:hunter2@127.0.0.1:{proxy.server_port}")
        if how == "cold":
            subprocesses.factory = make_factory(pythons={spec.key.tenant: sys.executable}, ready=0)
        host = subprocesses.factory.open(spec, None, Deadline.after(30))
        subprocesses.opened.append(host)

        report = subprocesses.ask(host, say(text="through it"))
        proxy.shutdown()

    assert not any(b"hunter2" in Path(f"/proc/{pid}/environ").read_bytes() for pid in alive(host))
    assert (report.answer, Proxy.asked) == ("through it", ["http://model.example/v1/chat/completions"])


def test_a_python_that_cannot_run_is_an_error_that_says_so(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory]
) -> None:
    """The session does not open, and nothing is left."""
    spec = subprocesses.spec()
    factory = make_factory(pythons={spec.key.tenant: "/nonexistent/python"}, ready=0)

    with pytest.raises(InternalError, match="code 127"):
        factory.open(spec, None, Deadline.after(10))


def test_a_python_without_the_package_is_an_error_with_the_command_to_try(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory], tmp_path: Path
) -> None:
    """A tenant's virtual environment that lacks it: the operator is told where to look."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / "bin" / "python")
    spec = subprocesses.spec()
    factory = make_factory(pythons={spec.key.tenant: python}, ready=0)

    with pytest.raises(InternalError, match="code 1") as raised:
        factory.open(spec, None, Deadline.after(10))

    assert f"{python} -c 'import agentao_gov" in (raised.value.hint or "")


def test_a_python_with_other_versions_is_refused(
    subprocesses: Subprocesses, make_factory: Callable[..., SubprocessFactory], tmp_path: Path
) -> None:
    """What crosses the wire is only understood by the same version: refused before anything is read."""
    program = tmp_path / "python"
    change = "from agentao_gov.worker import wire; wire.VERSIONS['agentao-gov'] = '0.0.9'"
    run = "import sys, runpy; del sys.argv[:3]; runpy.run_module(sys.argv[0], {}, '__main__')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{change}; {run}" "$@"\n')
    program.chmod(0o700)
    spec = subprocesses.spec()
    factory = make_factory(pythons={spec.key.tenant: str(program)}, ready=0)

    with pytest.raises(ConfigError, match=r"agentao-gov 0\.0\.9 \(the service: "):
        factory.open(spec, None, Deadline.after(20))
