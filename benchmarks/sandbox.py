"""What the sandbox costs a shell command, and the file tools' own process a call.

    python benchmarks/sandbox.py

Writes `sandbox.json` and the tables of `sandbox.md`, which also tells the method.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentao.cancellation import CancellationToken
from agentao.capabilities import ShellRequest
from agentao.capabilities.shell_spec import AbsPath, LegacyLaunch
from agentao.tools.file_ops import ReadFileTool
from agentao.tools.search import FindFilesTool

from agentao_gov.governor.confine import TrackedShell
from agentao_gov.governor.file_program import ConfinedFileSystem
from agentao_gov.governor.file_tools import FILE_TOOLS
from agentao_gov.process.sandbox import Sandbox, SandboxLayers, find_layers
from agentao_gov.process.tags import session_tag
from agentao_gov.process.tree import SessionTree

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.tables import machine, refresh, table  # noqa: E402

COMMANDS = {"true": "true", "cat a file": "cat f0.txt > /dev/null", "git status": "git status > /dev/null"}
FILES = 100


def shell(directory: Path, layers: SandboxLayers | None) -> TrackedShell:
    """The shell of one session; `layers` None: without a sandbox."""
    sandbox = Sandbox(layers, directory) if layers is not None else None
    tree = SessionTree(session_tag("benchmark", str(layers)))
    return TrackedShell(tree, 60.0, lambda: (), sandbox=sandbox, required=False)


def command_runs(directory: Path) -> dict[str, Callable[[str], None]]:
    """Name of a layer → runs one command in it."""
    found = find_layers()
    layers: dict[str, SandboxLayers | None] = {"none": None}
    if found.landlock:
        layers["landlock"] = SandboxLayers(landlock=found.landlock)
    if found.bubblewrap is not None:
        layers["bubblewrap"] = SandboxLayers(bubblewrap=found.bubblewrap)
    shells = {name: shell(directory, one) for name, one in layers.items()}

    def runner(one: TrackedShell) -> Callable[[str], None]:
        def run(command: str) -> None:
            launch = LegacyLaunch(command=command, cwd=AbsPath(str(directory)), env=dict(os.environ))
            result = one.run(ShellRequest(launch=launch))
            assert result.returncode == 0, result.stderr

        return run

    return {name: runner(one) for name, one in shells.items()}


def tool_runs(directory: Path) -> dict[str, dict[str, Callable[[], str]]]:
    """Name of a tool → where it runs → runs one call."""
    found: dict[str, dict[str, Callable[[], str]]] = {}
    calls: tuple[tuple[Any, dict[str, Any]], ...] = (
        (FindFilesTool(), {"pattern": "*.txt"}),
        (ReadFileTool(), {"file_path": "f0.txt"}),
    )
    for tool, arguments in calls:
        tool.working_directory = directory
        tool.filesystem = ConfinedFileSystem(directory, lambda: None)

        def inside(tool: Any = tool, arguments: dict[str, Any] = arguments) -> str:
            return str(tool.execute(**arguments))

        def apart(tool: Any = tool, arguments: dict[str, Any] = arguments) -> str:
            return FILE_TOOLS.run(tool, arguments, limit_s=60, token=CancellationToken(), denied=lambda: None)

        found[tool.name] = {"in the service's process": inside, "in its own": apart}
    return found


def timed_ms(work: Callable[[], object]) -> float:
    """How long one call takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def interleaved(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each work, all in turn in every round, after three rounds that do not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 3):
        for name, work in works.items():
            took_ms = timed_ms(work)
            if number >= 3:
                found[name].append(took_ms)
    return found


def rows(results: Mapping[str, Mapping[str, list[float]]]) -> list[list[str]]:
    """Median and 95th percentile of each."""
    return [
        [name, *(f"{statistics.median(ms):.1f} ({sorted(ms)[int(len(ms) * 0.95)]:.1f})" for ms in by.values())]
        for name, by in results.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "agentao": version("agentao"),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "rounds": options.rounds,
    }
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        for number in range(FILES):
            (directory / f"f{number}.txt").write_text("some text\n" * 20)
        runs = command_runs(directory)
        next(iter(runs.values()))("git init -q .")
        commands = {
            title: interleaved(
                {layer: lambda run=run, line=line: run(line) for layer, run in runs.items()}, options.rounds
            )
            for title, line in COMMANDS.items()
        }
        tools = {tool: interleaved(works, options.rounds) for tool, works in tool_runs(directory).items()}
    (HERE / "sandbox.json").write_text(
        json.dumps({"environment": environment, "commands_ms": commands, "tools_ms": tools}, indent=1) + "\n"
    )
    sections = {
        "machine": machine(environment),
        "commands": table(["median (p95), ms", *runs], rows(commands)),
        "tools": table(["median (p95), ms", *next(iter(tools.values()))], rows(tools)),
    }
    refresh(HERE / "sandbox.md", sections)


if __name__ == "__main__":
    main()
