"""Commands, run in this process as a shell would run them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.main import run_command
from agentao_gov.simulator import Simulator


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one line of JSON and nothing else."""
        assert self.out.endswith("\n")
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], here: Path) -> Cli:
    """Runs a command in an empty directory; none of its output is a terminal."""

    def run(*args: object) -> Result:
        capsys.readouterr()
        code = run_command([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def run(cli: Cli, simulator: Simulator) -> Cli:
    """`agentao-gov run` against the simulator of this test."""

    def call(*args: object) -> Result:
        return cli("run", "--base-url", simulator.base_url, "--model", "sim", *args)

    return call
