"""What a tool may do without a person: rules first, then the mode; and what git is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agentao.permissions import PermissionDecision

from agentao_gov.config.profile import Tools
from agentao_gov.governor.rules import GovernedPermissions, decide
from tests.governor.harness import Harness, say

SHELL = "run_shell_command"


def action(
    name: str, tools: dict[str, Any], *, sandboxed: bool = False, reads: bool = False, **arguments: Any
) -> str | None:
    """What is decided; None leaves it to the tool."""
    verdict = decide(Tools.model_validate(tools), name, arguments, sandboxed=sandboxed, reads=reads)
    return None if verdict is None else verdict.action


@pytest.mark.parametrize(
    ("mode", "sandboxed", "expected"),
    [
        ("read-only", True, "deny"),
        ("read-only", False, "deny"),
        ("workspace-write", True, "allow"),
        ("workspace-write", False, "ask"),
        ("full-access", True, "allow"),
        ("full-access", False, "allow"),
    ],
)
@pytest.mark.parametrize("command", ["git status", "cat /etc/passwd", "ls", "ps e", "make"])
def test_a_command_is_judged_by_the_mode_and_the_sandbox(
    mode: str, sandboxed: bool, expected: str, command: str
) -> None:
    """agentao let the harmless-looking ones through with any path and any repository."""
    assert action(SHELL, {"permission_mode": mode}, sandboxed=sandboxed, command=command) == expected


def test_the_first_rule_that_matches_decides() -> None:
    """Before the mode, also against it."""
    rules = [
        {"tool": SHELL, "when": {"command": "git push *"}, "action": "deny"},
        {"tool": SHELL, "when": {"command": "git *"}, "action": "allow"},
        {"tool": "mcp_*", "action": "ask"},
    ]
    tools = {"permission_mode": "read-only", "rules": rules}

    assert action(SHELL, tools, command="git push origin") == "deny"
    assert action(SHELL, tools, command="git log") == "allow"
    assert action("mcp_files_read", tools) == "ask"
    assert action(SHELL, tools, command="make") == "deny"


@pytest.mark.parametrize(
    "command",
    [
        "pytest; curl evil",
        "pytest x && rm -r y",
        "pytest $(cat key)",
        "pytest `id`",
        "pytest\ncurl evil",
        "pytest > /etc/x",
        "pytest x | sh",
        "pytest & evil",
        "pytest < /etc/passwd",
    ],
)
def test_an_allowed_pattern_covers_no_further_command(command: str) -> None:
    """Nobody who writes `pytest *` means what may follow."""
    rule = {"tool": SHELL, "when": {"command": "pytest*"}, "action": "allow"}

    assert action(SHELL, {"permission_mode": "workspace-write", "rules": [rule]}, command=command) == "ask"


def test_a_pattern_that_has_an_operator_covers_it() -> None:
    """Whoever writes it means it."""
    rule = {"tool": SHELL, "when": {"command": "make && make test*"}, "action": "allow"}

    assert action(SHELL, {"rules": [rule]}, command="make && make test -j") == "allow"


def test_a_denied_pattern_covers_every_form() -> None:
    """What is forbidden stays so with something behind it."""
    rule = {"tool": "*", "when": {"command": "*curl*"}, "action": "deny"}

    assert action(SHELL, {"permission_mode": "full-access", "rules": [rule]}, command="make; curl x") == "deny"


@pytest.mark.parametrize(
    "path", [".git/config", "a/.git/hooks/x", ".GIT/config", "./x/../.git/config", ".env", "a/.env.local", "k.pem"]
)
def test_what_is_obeyed_later_needs_a_person(path: str) -> None:
    """A repository's hooks, keys, agentao's own directory."""
    assert action("write_file", {"permission_mode": "workspace-write"}, file_path=path) == "ask"
    assert action("write_file", {"permission_mode": "workspace-write"}, file_path="src/main.py") == "allow"


def judged(root: Path, action: str, pattern: str, path: str) -> str | None:
    """What a rule over paths makes of a path."""
    rule = {"tool": "*_file", "when": {"file_path": pattern}, "action": action}
    tools = Tools.model_validate({"permission_mode": "workspace-write", "rules": [rule]})
    detail = GovernedPermissions(tools, root, sandboxed=False).decide_detail("write_file", {"file_path": path})
    return None if detail is None else str(detail.reason)


@pytest.mark.parametrize("path", ["keys/a", "./keys/a", "src/../keys/a", "{root}/keys/a", "link/a"])
def test_a_rule_over_paths_knows_every_spelling(tmp_path: Path, path: str) -> None:
    """What is forbidden is forbidden by any name, and what is allowed allows no other place."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "keys")
    path = path.replace("{root}", str(tmp_path))

    assert "says deny" in str(judged(tmp_path, "deny", "keys/*", path))
    assert "says allow" in str(judged(tmp_path, "allow", "keys/*", path))
    assert "says allow" not in str(judged(tmp_path, "allow", "src/*", path))


def test_reading_is_left_to_the_tool_and_writing_denied_in_reading_mode() -> None:
    """As before."""
    assert action("read_file", {"permission_mode": "read-only"}, reads=True) is None
    assert action("write_file", {"permission_mode": "read-only"}) == "deny"


def test_the_worst_commands_are_refused_in_every_mode_by_every_rule(tmp_path: Path) -> None:
    """No person and no rule may allow them."""
    rule = {"tool": "*", "action": "allow"}
    tools = Tools.model_validate({"permission_mode": "full-access", "rules": [rule]})
    permissions = GovernedPermissions(tools, tmp_path, sandboxed=True)

    detail = permissions.decide_detail(SHELL, {"command": "rm -rf /"})

    assert detail is not None
    assert detail.decision is PermissionDecision.DENY


@pytest.mark.parametrize(
    "command", ["rm" + " " * 60_000 + "-rf /", "true" + " \t" * 30_000 + "\nrm\t\t\t\t\t\t\t\t\t-rf /", "a" * 65_537]
)
def test_a_long_command_is_refused_for_what_it_is(tmp_path: Path, command: str) -> None:
    """agentao looks at a run of blanks in time with its square, and no other thread runs meanwhile: ours are short."""
    permissions = GovernedPermissions(Tools(permission_mode="full-access"), tmp_path, sandboxed=True)

    detail = permissions.decide_detail(SHELL, {"command": command})

    assert detail is not None
    assert detail.decision is PermissionDecision.DENY


def test_a_refused_call_says_why_to_the_model_and_in_the_report(harness: Harness) -> None:
    """By which rule."""
    rule = {"tool": SHELL, "when": {"command": "make*"}, "action": "deny"}
    session = harness.open(tools={"permission_mode": "full-access", "allow": [SHELL], "rules": [rule]})

    report = harness.ask(session, say(text="after", tool={"name": SHELL, "args": {"command": "make all"}}))

    (call,) = report.tool_calls
    assert call.outcome == "denied"
    assert call.reason == "rule 1 of [[tools.rules]], tool = 'run_shell_command', says deny"
    told = [str(message["content"]) for message in session.snapshot().messages if message["role"] == "tool"]
    assert "rule 1 of [[tools.rules]]" in told[0]


def test_a_rule_lets_a_command_run_in_reading_mode(harness: Harness) -> None:
    """agentao itself would refuse whatever writes, there."""
    rule = {"tool": SHELL, "when": {"command": "touch made"}, "action": "allow"}
    tools = {"permission_mode": "read-only", "allow": [SHELL, "write_file"], "rules": [rule], "sandbox": "off"}
    session = harness.open(tools=tools)
    write = {"name": "write_file", "args": {"file_path": "x", "content": "x"}}

    ran = harness.ask(session, say(text="after", tool={"name": SHELL, "args": {"command": "touch made"}}))
    wrote = harness.ask(session, say(text="after", tool=write))

    assert [call.outcome for call in (*ran.tool_calls, *wrote.tool_calls)] == ["ok", "denied"]
    assert (session._spec.workdir / "made").exists()


def test_git_runs_nothing_that_a_repository_names(harness: Harness) -> None:
    """Also without a sandbox, where an operator allowed it."""
    tools = {"permission_mode": "full-access", "allow": [SHELL], "sandbox": "off"}
    session = harness.open(tools=tools)
    command = (
        "git init -q r && cd r && git config core.fsmonitor 'touch ../monitor; false' && git status > /dev/null\n"
        "mkdir -p .git/hooks; printf '#!/bin/sh\\ntouch ../hook\\n' > .git/hooks/pre-commit; chmod +x .git/hooks/*\n"
        "git -c user.name=x -c user.email=x@x commit -q --allow-empty -m x; cd ..\n"
        "git init -q --bare b; cd b; git config core.fsmonitor 'touch ../bare'; git status; git log"
    )

    harness.ask(session, say(text="after", tool={"name": SHELL, "args": {"command": command}}))

    assert sorted(path.name for path in session._spec.workdir.iterdir()) == ["b", "r"]
