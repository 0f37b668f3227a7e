"""What tools may do, and what the report says of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from agentao.host import Tool

from agentao_gov.governor import Outcome, TurnReport
from agentao_gov.process.sandbox import find_layers
from tests.governor.harness import Harness, say

READ = {"allow": ["read_file", "glob", "search_file_content", "list_directory"]}
WRITE: dict[str, Any] = {
    "permission_mode": "workspace-write",
    "sandbox": "off",
    "allow": ["read_file", "write_file", "replace", "run_shell_command", *READ["allow"]],
}


def call(name: str, **arguments: Any) -> str:
    return say(text="after", tool={"name": name, "args": arguments})


def outcomes(report: TurnReport) -> list[tuple[str, str]]:
    return [(done.name, done.outcome) for done in report.tool_calls]


def results(harness: Harness) -> str:
    """What the model was told."""
    messages = harness.opened[-1].snapshot().messages
    return "\n".join(str(message["content"]) for message in messages if message["role"] == "tool")


@pytest.fixture
def workdir(harness: Harness, tmp_path: Path) -> Path:
    """The session's directory, with a secret beside it and links that lead to it."""
    where = tmp_path / "s1"
    where.mkdir()
    (tmp_path / "secret.txt").write_text("the neighbour's secret")
    (where / "own.txt").write_text("my own text")
    (where / "link.txt").symlink_to(tmp_path / "secret.txt")
    (where / "up").symlink_to(tmp_path)
    return where


def test_a_file_of_the_session_is_read(harness: Harness, workdir: Path) -> None:
    """The point of a tool is that it works."""
    report = harness.run(call("read_file", file_path="own.txt"), tools=READ)

    assert outcomes(report) == [("read_file", "ok")]
    assert "my own text" in results(harness)


@pytest.mark.parametrize(
    "path",
    ["/etc/hostname", "../secret.txt", "link.txt", "up/secret.txt", "~/.bashrc", "./up/../own.txt/../../secret.txt"],
)
def test_a_file_outside_is_denied(harness: Harness, workdir: Path, path: str) -> None:
    """Absolute, by `..`, through a link to a file or a directory: agentao would read them all."""
    report = harness.run(call("read_file", file_path=path), tools=READ)

    assert outcomes(report) == [("read_file", "denied")]
    assert "secret" not in results(harness).replace("secret.txt", "")
    assert report.outcome == Outcome.ANSWERED


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("glob", {"pattern": "*", "directory": ".."}),
        ("glob", {"pattern": "../*"}),
        ("glob", {"pattern": "up/*"}),
        ("list_directory", {"directory_path": "up"}),
        ("list_directory", {"directory_path": "/etc"}),
        ("search_file_content", {"pattern": "neighbour", "directory": "/"}),
        ("search_file_content", {"pattern": "neighbour"}),
        ("search_file_content", {"pattern": "neighbour", "file_pattern": "../*"}),
        ("search_file_content", {"pattern": "neighbour", "file_pattern": "up/**/*"}),
    ],
)
def test_nothing_outside_is_found(harness: Harness, workdir: Path, tool: str, arguments: dict[str, str]) -> None:
    """Neither content nor names."""
    harness.run(call(tool, **arguments), tools=READ)

    told = results(harness)
    assert "neighbour's" not in told
    assert "secret.txt" not in told
    assert "passwd" not in told


def test_a_repository_that_points_elsewhere_is_not_followed(harness: Harness, workdir: Path, tmp_path: Path) -> None:
    """The search tool would run `git grep`, and the model can write `.git`."""
    outside = tmp_path / "other"
    outside.mkdir()
    (outside / "file.txt").write_text("the neighbour's secret")
    git = workdir / ".git"
    git.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    for name in ("objects", "refs"):
        (git / name).mkdir()
    (git / "config").write_text(f"[core]\n\tworktree = {outside}\n")

    harness.run(call("search_file_content", pattern="neighbour"), tools=READ)

    assert "neighbour's" not in results(harness)


def test_writing_stays_inside_too(harness: Harness, workdir: Path, tmp_path: Path) -> None:
    """agentao holds this; so does our file system beneath it."""
    harness.run(call("write_file", file_path="../planted.txt", content="x"), tools=WRITE)

    assert not (tmp_path / "planted.txt").exists()


def test_a_tool_that_is_not_allowed_is_denied(harness: Harness) -> None:
    """The model asks for it all the same; agentao answers without an event."""
    report = harness.run(call("run_shell_command", command="ls"), tools=READ)

    assert outcomes(report) == [("run_shell_command", "denied")]
    assert report.answer == "after"


def test_a_misspelt_allowed_tool_is_repaired_not_denied(harness: Harness, workdir: Path) -> None:
    """agentao mends spellings like ReadFile."""
    report = harness.run(call("ReadFile", file_path="own.txt"), tools=READ)

    assert outcomes(report) == [("read_file", "ok")]


def test_what_needs_confirmation_is_denied_without_a_person(harness: Harness, workdir: Path) -> None:
    """agentao's own transports say yes."""
    report = harness.run(call("run_shell_command", command="touch made && python3 -c 'pass'"), tools=WRITE)

    assert outcomes(report) == [("run_shell_command", "denied")]
    assert not (workdir / "made").exists()


def test_a_person_may_be_asked(harness: Harness, workdir: Path) -> None:
    """At a terminal the command line passes a callback."""
    asked: list[str] = []

    def confirm(name: str, _description: str, arguments: dict[str, Any]) -> bool:
        asked.append(f"{name} {arguments['command']}")
        return True

    report = harness.run(
        call("run_shell_command", command="touch made && python3 -c 'pass'"), tools=WRITE, options={"confirm": confirm}
    )

    assert outcomes(report) == [("run_shell_command", "ok")]
    assert asked == ["run_shell_command touch made && python3 -c 'pass'"]
    assert (workdir / "made").exists()


def test_a_person_who_does_not_answer_does_not_hold_the_turn(harness: Harness, workdir: Path) -> None:
    """A prompt at a terminal cannot be interrupted; the turn ends without it, and is not stuck."""
    release = threading.Event()

    report = harness.run(
        call("run_shell_command", command="touch made && python3 -c 'pass'"),
        tools=WRITE,
        options={"confirm": lambda *_: release.wait(60)},
        limits={"turn_timeout": 0.5},
    )

    release.set()
    assert report.outcome == Outcome.TURN_TIMEOUT
    assert not (workdir / "made").exists()


def test_reading_mode_denies_writing(harness: Harness, workdir: Path) -> None:
    """Allowed by name, refused by mode."""
    tools = {"permission_mode": "read-only", "allow": ["write_file"]}

    report = harness.run(call("write_file", file_path="new.txt", content="x"), tools=tools)

    assert outcomes(report) == [("write_file", "denied")]
    assert not (workdir / "new.txt").exists()


class Failing(Tool):
    name = "failing"
    description = "fails"
    is_read_only = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @property
    def parameters(self) -> dict[str, Any]:
        return {"type": "object", "properties": {}}

    def execute(self, **_: Any) -> str:
        raise RuntimeError("it broke")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("read_file", {"file_path": "no-such-file.txt"}),
        ("list_directory", {"directory_path": "no-such-directory"}),
        ("glob", {"pattern": "*", "directory": "no-such-directory"}),
        ("search_file_content", {"pattern": "x", "directory": "no-such-directory"}),
    ],
)
def test_a_tool_that_says_it_failed_is_an_error(
    harness: Harness, workdir: Path, tool: str, arguments: dict[str, str]
) -> None:
    """agentao's tools return their failures as text, and its events call that `ok`."""
    report = harness.run(call(tool, **arguments), tools=READ)

    assert outcomes(report) == [(tool, "error")]
    assert report.outcome == Outcome.ANSWERED


def test_a_file_that_begins_with_the_word_error_is_read_all_the_same(harness: Harness, workdir: Path) -> None:
    """The tool's own words count, never the file's."""
    (workdir / "log.txt").write_text("Error: disk full\nError reading file: no\n")

    report = harness.run(call("read_file", file_path="log.txt"), tools=READ)

    assert outcomes(report) == [("read_file", "ok")]


def test_a_tool_that_raises_is_an_error_and_the_model_goes_on(harness: Harness) -> None:
    """Custom tools are filtered by the allow-list like built-in ones."""
    session = harness.open(custom=[Failing()], tools={"allow": ["failing"]})

    report = harness.ask(session, call("failing"))

    assert outcomes(report) == [("failing", "error")]
    assert report.outcome == Outcome.ANSWERED


def test_a_custom_tool_that_is_not_allowed_is_not_there(harness: Harness) -> None:
    """Giving a tool to the governor is not allowing it in a profile."""
    session = harness.open(custom=[Failing()], tools=READ)

    report = harness.ask(session, call("failing"))

    assert outcomes(report) == [("failing", "denied")]


def test_an_allowed_name_that_does_not_exist_is_a_warning(harness: Harness) -> None:
    """A typo must not look like a tool the model chose not to use."""
    report = harness.run(say(text="ok"), tools={"allow": ["read_file", "reed_file"]})

    assert any("reed_file" in warning for warning in report.warnings)


def test_reading_tools_run_in_parallel_and_are_all_recorded(harness: Harness, workdir: Path) -> None:
    """A batch of reading calls runs on several threads."""
    tool = {"name": "glob", "args": {"pattern": "{call}*"}, "vary": True, "parallel": 6}

    report = harness.run(say(text="after", tool=tool), tools=READ)

    assert outcomes(report) == [("glob", "ok")] * 6


def test_a_command_sees_neither_the_key_nor_its_variable(
    harness: Harness, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the variable is called, its value is the key."""
    monkeypatch.setenv("SOMETHING", "sk-simulated-0123456789")
    monkeypatch.setenv("SERVICE_DB_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("DATABASE_URL", "redis://:hunter2/3@127.0.0.1/0")
    monkeypatch.setenv("ALL_PROXY", "svc:hunter2@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command"], "sandbox": "off"}

    harness.run(call("run_shell_command", command="env > env.txt"), tools=tools)

    seen = (workdir / "env.txt").read_text()
    assert "sk-simulated" not in seen
    assert "hunter2" not in seen
    assert "NO_PROXY=" in seen
    assert "AGENTAO_GOV_TAG=" in seen
    assert "PATH=" in seen


def test_a_directory_that_commands_may_read_is_readable(harness: Harness, tmp_path: Path) -> None:
    """Tools outside of the system's own directories."""
    if find_layers().best is None:
        pytest.skip("no sandbox works here")
    (tmp_path / "jdk").mkdir()
    (tmp_path / "jdk" / "tool").write_text("a tool's text")
    tools = {"permission_mode": "workspace-write", "allow": ["run_shell_command"], "readable": [str(tmp_path / "jdk")]}

    harness.run(call("run_shell_command", command=f"cat {tmp_path}/jdk/tool; echo x > {tmp_path}/jdk/x"), tools=tools)

    assert "a tool's text" in results(harness)
    assert not (tmp_path / "jdk" / "x").exists()
