"""Every shell command of the list, in each sandbox: nothing is learnt, nothing is harmed, nothing stays behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from agentao.capabilities import ShellRequest
from agentao.capabilities.shell_spec import AbsPath, LegacyLaunch

from agentao_gov.governor.confine import TrackedShell
from agentao_gov.process.sandbox import Sandbox, SandboxLayer, SandboxLayers, find_layers
from agentao_gov.process.tags import session_tag
from agentao_gov.process.tree import SessionTree
from tests.attacks.arena import Arena
from tests.attacks.commands import COMMANDS, PROVEN
from tests.governor.conftest import harness, http, simulator, simulator_process
from tests.governor.harness import Harness

__all__ = ["harness", "http", "simulator", "simulator_process"]

LAYERS: tuple[SandboxLayer, ...] = ("bubblewrap", "landlock")
pytestmark = pytest.mark.timeout(60)


def only(layer: SandboxLayer) -> SandboxLayers:
    """A machine that has this layer and no other."""
    found = find_layers()
    if layer == "bubblewrap":
        if found.bubblewrap is None:
            pytest.skip("bubblewrap does not work here")
        return SandboxLayers(bubblewrap=found.bubblewrap)
    if not found.landlock:
        pytest.skip("Landlock does not work here")
    return SandboxLayers(landlock=found.landlock)


@pytest.fixture
def arena(harness: Harness, tmp_path: Path) -> Iterator[Callable[[SandboxLayers], Arena]]:
    """Makes the arena of a machine."""
    made: list[Arena] = []

    def make(layers: SandboxLayers) -> Arena:
        made.append(Arena(harness, tmp_path, layers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def sleepers() -> list[int]:
    """The daemons of the list that are still there."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "1000"]]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_hostile_command_gets_nowhere(
    arena: Callable[[SandboxLayers], Arena], layer: SandboxLayer, name: str
) -> None:
    """The row's own sentence says what it tries."""
    field = arena(only(layer))

    report = field.shell(COMMANDS[name][1])

    assert [call.name for call in report.tool_calls] == ["run_shell_command"]
    assert list(field.loot()) == []
    assert field.damage() == []
    assert not (field.home / "ran").exists()
    assert field.left_over() == ()
    assert sleepers() == []


@pytest.mark.parametrize("name", PROVEN)
def test_the_same_command_does_harm_where_nothing_holds_it(arena: Callable[[SandboxLayers], Arena], name: str) -> None:
    """Or the list would prove nothing."""
    field = arena(SandboxLayers())

    field.shell(COMMANDS[name][1], sandbox="off", permission_mode="full-access")

    assert list(field.loot()) or field.damage()


@pytest.mark.parametrize("layer", LAYERS)
def test_honest_work_goes_on_in_the_sandbox(arena: Callable[[SandboxLayers], Arena], layer: SandboxLayer) -> None:
    """Files, pipes, temporary files, an interpreter, a repository."""
    field = arena(only(layer))

    report = field.shell(
        "set -e; cat own.txt | tr a-z A-Z > upper.txt; cat <(cat upper.txt); mkdir -p a/b; mv upper.txt a/b; rm -r a\n"
        "f=$(mktemp); echo x > $f; @PYTHON -c 'import json, tempfile; print(json.dumps(tempfile.gettempdir()))'\n"
        "git init -q r; cd r; echo x > f; chmod 750 f; touch -d 2001-01-01 f; cp -p f g; ls -l --time-style=+%Y g\n"
        "git add f; git -c user.name=x -c user.email=x@x commit -q -m first; git log --oneline"
    )

    assert [call.outcome for call in report.tool_calls] == ["ok"]
    assert "MY OWN TEXT" in field.told()
    assert "first" in field.told()
    assert re.search(r"rwxr-x--- .* 2001 g", field.told())
    assert "Exit code" not in field.told()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_background_command_lives_as_long_as_the_turn(tmp_path: Path, layer: SandboxLayer) -> None:
    """The next command of the turn finds it at work; when the turn ends it is gone."""
    tree = SessionTree(session_tag("evil", "s1"))
    shell = TrackedShell(tree, 20.0, lambda: (), sandbox=Sandbox(only(layer), tmp_path.resolve()), required=True)

    def request(command: str) -> ShellRequest:
        return ShellRequest(launch=LegacyLaunch(command=command, cwd=AbsPath(str(tmp_path)), env={}))

    handle = shell.run_background(request("trap '' TERM; while true; do date +%N >> beats; sleep 0.05; done"))
    met = shell.run(request("while [ $(cat beats | wc -l) -lt 10 ]; do sleep 0.05; done; echo met"))
    there = psutil.pid_exists(handle.pid)
    shell.sweep()

    assert met.stdout == b"met\n"
    assert there
    assert not psutil.pid_exists(handle.pid)
    assert tree.members() == ()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_command_that_runs_too_many_processes_is_told_the_limit(
    arena: Callable[[SandboxLayers], Arena], layer: SandboxLayer
) -> None:
    """The model can write it smaller, then."""
    field = arena(only(layer))

    field.shell(COMMANDS["fork-bomb"][1])

    assert "processes; 256 are allowed" in field.told()


def test_without_a_sandbox_commands_are_refused_with_the_line_to_write(
    arena: Callable[[SandboxLayers], Arena],
) -> None:
    """`auto` on a machine with neither layer: also in full-access, and also where a rule allows it."""
    field = arena(SandboxLayers())
    rule = {"tool": "run_shell_command", "action": "allow"}

    report = field.shell("touch made", permission_mode="full-access", rules=[rule])

    (call,) = report.tool_calls
    assert call.outcome == "denied"
    assert call.reason is not None
    assert '[tools] sandbox = "off"' in call.reason
    assert '[tools] sandbox = "off"' in field.told()
    assert not (field.home / "made").exists()
