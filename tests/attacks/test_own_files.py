"""What agentao reads and writes by itself in a session's directory, where a command has left a link or a pipe."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from agentao_gov.process.sandbox import SandboxLayers
from tests.attacks.arena import SECRET, Arena
from tests.attacks.test_commands import arena
from tests.governor.conftest import harness, http, simulator, simulator_process

__all__ = ["arena", "harness", "http", "simulator", "simulator_process"]

Make = Callable[[SandboxLayers], Arena]
LONG: dict[str, Any] = {"file_path": "long.txt", "limit": 20_000}


@pytest.fixture
def field(arena: Make) -> Arena:
    """The arena, with a file whose content agentao saves beside."""
    made = arena(SandboxLayers())
    (made.home / "long.txt").write_text("a line of text\n" * 10_000)
    return made


def prompt(session: Any) -> str:
    """What the model is told of the session's directory before anything else."""
    return str(session._parts.agent._build_system_prompt())


@pytest.mark.parametrize("name", ["AGENTAO.md", "AGENTS.md"])
def test_instructions_are_not_read_through_a_link(field: Arena, name: str) -> None:
    """The service's environment would stand in the system prompt."""
    (field.home / name).symlink_to(field.victim / "secret.txt")

    session = field.open()

    assert SECRET not in prompt(session)
    (field.home / name).unlink()


@pytest.mark.parametrize("name", ["AGENTAO.md", ".agentao/skills_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_session_opens_whatever_stands_in_place_of_its_files(field: Arena, name: str, kind: str) -> None:
    """A pipe would hold the service's thread for ever, a device its memory."""
    place = field.home / name
    place.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")

    report = field.call("list_directory", tools={"allow": ["list_directory", "activate_skill"]})

    assert report.answer == "after"
    place.unlink()


def test_the_project_s_own_instructions_are_read(field: Arena) -> None:
    """A file of the session, also by a link that stays inside."""
    (field.home / "docs").mkdir()
    (field.home / "docs" / "rules.md").write_text("Answer in Latin, rule 4711.")
    (field.home / "AGENTAO.md").symlink_to("docs/rules.md")

    assert "rule 4711" in prompt(field.open())


@pytest.mark.parametrize("name", [".agentao", ".agentao/tool-outputs"])
def test_a_large_result_is_not_saved_through_a_link(field: Arena, name: str) -> None:
    """The service would write into another tenant's directory, or into the system's."""
    place = field.home / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(field.victim)

    report = field.call("read_file", **LONG)

    assert [call.outcome for call in report.tool_calls] == ["ok"]
    assert field.damage() == []
    place.unlink()


def test_a_large_result_is_saved_and_can_be_read_back(field: Arena) -> None:
    """As agentao tells the model."""
    field.call("read_file", **LONG)

    (saved,) = (field.home / ".agentao" / "tool-outputs").iterdir()
    assert f"Full output saved to: {saved}" in field.told()
    assert saved.stat().st_size > 100_000


@pytest.mark.parametrize("name", [".agentao", ".agentao/memory.db"])
def test_a_memory_is_not_written_through_a_link(field: Arena, name: str) -> None:
    """Neither at the opening of a session nor later."""
    tools = {"permission_mode": "full-access", "allow": ["save_memory"]}
    session = field.open(**tools)
    place, target = field.home / name, field.victim / ("" if name == ".agentao" else "secret.txt")
    if place.is_dir():
        place.rename(field.home / "moved")
    else:
        place.unlink()
    place.symlink_to(target)

    field.ask(session, "save_memory", key="a", value="b")
    field.call("save_memory", tools=tools, key="a", value="b")

    assert field.damage() == []
    place.unlink()
