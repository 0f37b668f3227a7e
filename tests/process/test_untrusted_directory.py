"""A directory in which a command is run is a place for files, never for the modules our processes import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agentao_gov

#: Modules that are sure to be imported: of the standard library, of agentao's dependencies, of the package itself.
NAMES = ("tempfile", "json", "socket", "openai", "agentao", "agentao_gov", "locust", "uvicorn")


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A checkout of somebody's, whose files are named like those modules."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text("import sys\nsys.stderr.write('TRAPPED ' + __file__)\nsys.exit(66)\n")
    return tmp_path


def test_every_interpreter_of_ours_is_started_without_the_directory_it_starts_in() -> None:
    """`python -m` puts it first on the module path; `-P` does not."""
    package = Path(agentao_gov.__file__).parent
    starts = [
        (path.name, match[0])
        for path in package.rglob("*.py")
        for match in re.finditer(r'(\S+ )"-m",', path.read_text(encoding="utf-8"))
    ]

    assert len(starts) >= 8
    assert [start for start in starts if start[1] != '"-P", "-m",'] == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--mode", "subprocess", "--model", "simulated", "--no-stream", "hello"),
        ("serve", "--config", "none.toml"),
    ],
    ids=["run", "serve"],
)
def test_a_command_imports_nothing_from_the_directory_it_is_run_in(
    trap: Path, tmp_path_factory: pytest.TempPathFactory, arguments: tuple[str, ...]
) -> None:
    """A session process, the simulated model, a service below its warden: in somebody's checkout as anywhere."""
    program = Path(sys.executable).with_name("agentao-gov")
    done = subprocess.run(
        [program, *arguments],
        cwd=trap,
        env={**os.environ, "AGENTAO_GOV_STATE": str(tmp_path_factory.mktemp("state"))},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert "TRAPPED" not in done.stderr
    assert done.returncode == (0 if arguments[0] == "run" else 3), done.stderr
