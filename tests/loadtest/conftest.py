"""Fixtures of the load test: stubs that are the truth, and short runs against them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.run import LoadTestRun
from agentao_gov.loadtest.view import SilentView, Stop

ROOT = Path(__file__).parents[2]


class Stub:
    """A running stub."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    @property
    def pid(self) -> int:
        return self.process.pid


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    """Starts stubs with settings; all are gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(**settings: Any) -> Stub:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.loadtest.stub", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=ROOT,
            )
            stack.callback(_end, process)
            assert process.stdout is not None
            return Stub(process, int(process.stdout.readline()))

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


@pytest.fixture
def load() -> Callable[..., LoadTestReport]:
    """Runs a load test in this process (the generator is a child) and returns its report."""

    def run(url: str, *, stop: Stop | None = None, **changes: Any) -> LoadTestReport:
        options = LoadOptions(**{"target": url, "checklist": False, "think_scale": 0.0, "mix": {"qa": 1.0}, **changes})
        test = LoadTestRun(options, SilentView(), stop or Stop())
        test.prepare()
        return test.run()

    return run
