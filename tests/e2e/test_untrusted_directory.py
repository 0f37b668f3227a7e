"""A directory in which a command is run is a place for files, never for the modules our processes import."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import agentao_gov
from agentao_gov.testrig.service import free_port

#: Modules that are sure to be imported: of the standard library, of agentao's dependencies, of the package itself.
NAMES = ("tempfile", "json", "socket", "multiprocessing", "openai", "agentao", "agentao_gov", "locust", "uvicorn")


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


@pytest.fixture
def started(trap: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in that checkout; it is gone at the end."""
    program = Path(sys.executable).with_name("agentao-gov")
    environment = {**os.environ, "AGENTAO_GOV_STATE": str(tmp_path_factory.mktemp("state"))}
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [program, *arguments],
                cwd=trap,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "--mode", "subprocess", "--model", "simulated", "--no-stream", "hello"), 0),
        (("serve", "--config", "none.toml"), 3),
        # Two turns decide no percentile.
        (("loadtest", "--rate", "2", "--duration", "1s", "--no-checklist"), 11),
    ],
    ids=["run", "serve", "loadtest"],
)
def test_a_command_imports_nothing_from_the_directory_it_is_run_in(
    started: Callable[..., subprocess.Popen[str]], arguments: tuple[str, ...], code: int
) -> None:
    """A session process, the simulated model, a service below its warden, Locust: in a checkout as anywhere."""
    process = started(*arguments)
    out, err = process.communicate(timeout=100)

    assert "TRAPPED" not in out + err
    assert process.returncode == code, err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_services_workers_import_nothing_from_the_directory_it_is_run_in(
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    """They are spawned by the service itself, which without a warden was started without -P."""
    service = started("serve", "--no-warden", "--workers", "2", "--model", "simulated", "--port", str(free_port()))
    assert service.stderr is not None
    said = []
    for line in service.stderr:
        said.append(line)
        if sum('"listening"' in earlier for earlier in said) == 2:
            break
    service.terminate()
    _, rest = service.communicate(timeout=60)

    assert "TRAPPED" not in "".join(said) + rest
    assert service.returncode == 143, rest


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_load_tests_worker_imports_nothing_from_the_directory_it_is_run_in(
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    """`--worker-of`: it comes to its master once it has read the suite."""
    with socket.create_server(("127.0.0.1", 0)) as master:
        master.settimeout(0.1)
        worker = started("loadtest", "--worker-of", f"127.0.0.1:{master.getsockname()[1]}")
        came = False
        while not came and worker.poll() is None:
            with contextlib.suppress(TimeoutError):
                master.accept()[0].close()
                came = True
    worker.terminate()
    _, err = worker.communicate(timeout=60)

    assert "TRAPPED" not in err
    assert came, err
