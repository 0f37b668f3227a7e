"""What a hostile tenant asks of the file tools: nothing outside is read or written, and no call goes on for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentao_gov.process.sandbox import SandboxLayers
from agentao_gov.process.sandbox_program import landlock_abi
from tests.attacks.arena import SECRET, Arena
from tests.attacks.test_commands import arena
from tests.governor.conftest import harness, http, simulator, simulator_process

__all__ = ["arena", "harness", "http", "simulator", "simulator_process"]

Make = Callable[[SandboxLayers], Arena]

#: Name → what is tried, the tool and its arguments.
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "read-absolute": ("The path is known.", "read_file", {"file_path": "@VICTIM/secret.txt"}),
    "read-relative": ("The neighbour is near.", "read_file", {"file_path": "../../../t-acme/s1/work/secret.txt"}),
    "read-environment": ("The service's environment is a file.", "read_file", {"file_path": "/proc/self/environ"}),
    "read-parent": ("So is its parent's.", "read_file", {"file_path": "/proc/@PID/environ"}),
    "read-root": ("Another root leads around.", "read_file", {"file_path": "/proc/self/root@VICTIM/secret.txt"}),
    "read-descriptor": ("An open file is a file.", "read_file", {"file_path": "/proc/self/fd/3"}),
    "read-link": ("A link inside leads outside.", "read_file", {"file_path": "link.txt"}),
    "read-through-link": ("A directory does, too.", "read_file", {"file_path": "up/secret.txt"}),
    "read-home": ("A home directory by its short name.", "read_file", {"file_path": "~root/.bashrc"}),
    "read-device": ("A device never ends.", "read_file", {"file_path": "/dev/zero"}),
    "read-null": ("A name ends early.", "read_file", {"file_path": "own.txt\0@VICTIM/secret.txt"}),
    "list-outside": ("A directory above.", "list_directory", {"directory_path": "../../.."}),
    "list-through-link": ("A link to one.", "list_directory", {"directory_path": "up"}),
    "list-everything": ("All below a link.", "list_directory", {"directory_path": ".", "recursive": True}),
    "glob-outside": ("A pattern that climbs.", "glob", {"pattern": "../../../**/*.txt"}),
    "glob-absolute": ("A pattern from the root.", "glob", {"pattern": "/**/secret.txt"}),
    "glob-through-link": ("A pattern through a link.", "glob", {"pattern": "up/*"}),
    "search-outside": ("A search above.", "search_file_content", {"pattern": "canary", "directory": "../../.."}),
    "search-through-link": (
        "A search through a link.",
        "search_file_content",
        {"pattern": "canary", "file_pattern": "up/*"},
    ),
    "write-outside": ("A file beside.", "write_file", {"file_path": "@VICTIM/plan.txt", "content": "owned"}),
    "write-through-link": ("A file through a link.", "write_file", {"file_path": "plan-link.txt", "content": "owned"}),
    "append-through-link": (
        "A line through a link.",
        "write_file",
        {"file_path": "up/plan.txt", "content": "owned", "append": True},
    ),
    "replace-through-link": (
        "A word through a link.",
        "replace",
        {"file_path": "plan-link.txt", "old_text": "plan", "new_text": "owned"},
    ),
}


@pytest.fixture
def field(arena: Make) -> Iterator[Arena]:
    """The arena, with links in the attacker's directory as a command could make them."""
    made = arena(SandboxLayers())
    (made.home / "link.txt").symlink_to(made.victim / "secret.txt")
    (made.home / "plan-link.txt").symlink_to(made.victim / "plan.txt")
    (made.home / "up").symlink_to(made.victim)
    yield made
    for name in ("link.txt", "plan-link.txt", "up"):
        (made.home / name).unlink()


@pytest.mark.parametrize("name", CALLS)
def test_a_hostile_call_gets_nowhere(field: Arena, name: str) -> None:
    """The row's own sentence says what it tries."""
    _, tool, arguments = CALLS[name]
    filled: Any = {key: field.filled(value) if isinstance(value, str) else value for key, value in arguments.items()}

    field.call(tool, **filled)

    assert SECRET not in field.told()
    assert "secret.txt\n" not in field.told()
    assert field.damage() == []


@pytest.mark.skipif(not landlock_abi(), reason="without Landlock a path is looked at, then opened")
def test_a_link_that_comes_and_goes_is_never_followed_outside(arena: Make) -> None:
    """A command in the background changes a name between file and link while it is read."""
    field = arena(SandboxLayers())
    target, spare = field.home / "target.txt", field.home / "spare.txt"
    target.write_text("mine\n")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            spare.symlink_to(field.victim / "secret.txt")
            spare.replace(target)
            spare.write_text("mine\n")
            spare.replace(target)

    swapper = threading.Thread(target=swap)
    swapper.start()
    told = []
    session = field.open()
    for _ in range(40):
        field.ask(session, "read_file", file_path="target.txt")
        told.append(field.told())
    stop.set()
    swapper.join()
    target.unlink()

    assert not any(SECRET in text for text in told)
    assert any("mine" in text for text in told)
