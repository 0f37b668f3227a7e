"""What is an error in a profile, what a warning, and what is quietly made to fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.config import Overrides, inspect_profile, load_deployment, load_profile
from agentao_gov.config.checks import ARGUMENTS, BUILT_IN
from agentao_gov.config.load_deployment import inspect_deployment
from agentao_gov.config.model import looks_like_a_key
from agentao_gov.errors import ConfigError


def _profile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[limits]\n\nturn_timout = "30s"\n', 3, "unknown key; did you mean limits.turn_timeout?"),
        ('name = "x"\n[limit]\nturn_timeout = "30s"\n', 2, "unknown key; did you mean limits?"),
        ('turn_timeout = "30s"\n', 1, "unknown key; did you mean limits.turn_timeout?"),
        (
            '[mcp.servers.s]\ncommand = "x"\ntimeout = 3\n',
            3,
            "unknown key; did you mean mcp.servers.s.request_timeout?",
        ),
        ("[limits]\nmax_iterations = 0\n", 2, "must be at least 1, not 0"),
        ("[limits]\nmax_iterations = true\n", 2, "must be a whole number, not True"),
        ('[limits]\nmax_iterations = "many"\n', 2, "must be a whole number, not 'many'"),
        ("[limits]\nmax_context_tokens = -5\n", 2, "cannot be negative"),
        ("[limits]\nturn_tokens = 0\n", 2, "must be more than 0, not 0"),
        ('[limits]\nturn_timeout = "0s"\n', 2, "must be more than 0"),
        ('[limits]\nturn_timeout = "5 weeks"\n', 2, "is not a duration such as 90s"),
        ("[limits]\nllm_retries = -1\n", 2, "must be at least 0, not -1"),
        ('[on_limit]\nmax_iterations = "continue"\n', 2, "must be one of 'wrap_up', 'stop', not 'continue'"),
        ('[tools]\nallow = "read_file"\n', 2, "must be a list"),
        ('task = "chat"\n', 1, "must be one of 'qa', 'code', 'research', 'custom', not 'chat'"),
        ('name = "../../etc"\n', 1, "does not have the form"),
        ("limits = 3\n", 1, "must be a table"),
        ("[mcp.servers.s]\nargs = []\n", 1, "is required"),
    ],
)
def test_an_impossible_value_is_an_error_with_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    """The message names the place, what is wrong, and where it can the right word."""
    path = _profile(tmp_path, text)

    _, findings = inspect_profile(path)

    errors = [finding for finding in findings if finding.level == "error"]
    assert any(message in error.message and error.line == line and error.file == path for error in errors), findings


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    """Nobody wants to run a check once per mistake."""
    path = _profile(tmp_path, 'tusk = "qa"\n[limits]\nmax_iterations = -1\nturn_tokens = "x"\n')

    with pytest.raises(ConfigError) as caught:
        load_profile(path)

    assert "has 3 errors" in caught.value.message
    assert all(f"mine.toml:{line}" in caught.value.message for line in (1, 3, 4))


def test_a_tool_time_out_above_the_turns_is_an_error_inside_one_file(tmp_path: Path) -> None:
    """Who wrote both meant something else."""
    text = '[limits]\nturn_timeout = "60s"\ntool_timeout = "2m"\n[limits.tool_timeouts]\nglob = "3m"\n'

    _, findings = inspect_profile(_profile(tmp_path, text))

    errors = {(finding.key, finding.line) for finding in findings if finding.level == "error"}
    assert errors == {("limits.tool_timeout", 3), ("limits.tool_timeouts.glob", 5)}


@pytest.mark.parametrize(
    "overrides",
    [Overrides(flags={"limits.turn_timeout": ("--timeout", "10s")}), Overrides(sets=("limits.turn_timeout=10s",))],
)
def test_an_override_that_lowers_the_turn_clamps_tools_with_a_warning(overrides: Overrides) -> None:
    """`--timeout 10s` needs no second flag; the report still says what happened."""
    resolved = load_profile("code", overrides=overrides)

    limits = resolved.profile.limits
    assert limits.turn_timeout_s == limits.tool_timeout_s == 10.0
    assert set(limits.tool_timeouts_s.values()) == {10.0}
    assert any(f.key == "limits.tool_timeout" and "lowered from 60s" in f.message for f in resolved.findings)


def test_a_short_turn_clamps_the_default_tool_time_out_without_a_word(tmp_path: Path) -> None:
    """Nobody chose the default, so nobody has to hear that it moved."""
    resolved = load_profile(_profile(tmp_path, 'tier = "batch"\n[limits]\nturn_timeout = "5s"\n'))

    assert resolved.profile.limits.tool_timeout_s == 5.0
    assert resolved.findings == ()


def test_the_tool_flag_overrides_the_time_outs_by_name_and_of_servers(tmp_path: Path) -> None:
    """`--tool-timeout 5s` means every tool."""
    path = _profile(
        tmp_path, '[limits.tool_timeouts]\nglob = "9s"\n[mcp.servers.s]\ncommand = "x"\nrequest_timeout = "9s"\n'
    )

    resolved = load_profile(path, overrides=Overrides(flags={"limits.tool_timeout": ("--tool-timeout", "5s")}))

    limits = resolved.profile.limits
    assert (limits.tool_timeout_s, limits.tool_timeouts_s) == (5.0, {"glob": 5.0})
    assert resolved.profile.mcp.servers["s"].request_timeout_s == 5.0
    assert resolved.source("limits.tool_timeouts.glob") == "flag --tool-timeout"


@pytest.mark.parametrize(
    ("text", "key", "recommended"),
    [
        ('task = "qa"\n[limits]\nmax_iterations = 90\n', "limits.max_iterations", "20-30"),
        ('task = "code"\n[limits]\nmax_iterations = 25\n', "limits.max_iterations", "80-150"),
        ('task = "research"\n[limits]\nmax_iterations = 900\n', "limits.max_iterations", "200-500"),
        ("[limits]\nmax_iterations = 5000\n", "limits.max_iterations", "1-500"),
        ('[limits]\nturn_timeout = "10m"\n', "limits.turn_timeout", "60s-2m"),
        ('tier = "background"\n[limits]\nturn_timeout = "2h"\n', "limits.turn_timeout", "5m-30m"),
        (
            '[limits]\nmax_context_tokens = 400_000\n[model]\nname = "gpt-4.1"\n',
            "limits.max_context_tokens",
            "100,000-128,000",
        ),
    ],
)
def test_a_value_outside_the_recommended_range_is_a_warning_with_the_range(
    tmp_path: Path, text: str, key: str, recommended: str
) -> None:
    """It can be run with, and the range is named."""
    resolved = load_profile(_profile(tmp_path, text))

    assert [f.key for f in resolved.findings if recommended in f.message and f.level == "warning"] == [key]


@pytest.mark.parametrize(
    "model", ['name = "gpt-4.1"', 'name = "openai/GPT-4.1-2025-04-14"', 'name = "own"\ncontext_window = 1_047_576']
)
def test_a_context_cap_above_80_percent_of_the_window_is_an_error(tmp_path: Path, model: str) -> None:
    """The summariser needs the rest, whether the window is known or stated."""
    at_cap = _profile(tmp_path, f"[limits]\nmax_context_tokens = 838_060\n[model]\n{model}\n")
    assert load_profile(at_cap).profile.limits.max_context_tokens == 838_060

    above = _profile(tmp_path, f"[limits]\nmax_context_tokens = 838_061\n[model]\n{model}\n")
    with pytest.raises(ConfigError, match=r"mine\.toml:2: limits\.max_context_tokens: 838,061 is above 838,060"):
        load_profile(above)


def test_a_secret_in_a_wrong_value_is_not_repeated(tmp_path: Path) -> None:
    """Error messages end up in logs."""
    path = _profile(tmp_path, '[mcp.servers.s]\ncommand = "x"\nenv = { KEY = ["sk-secret"] }\n')

    with pytest.raises(ConfigError) as caught:
        load_profile(path)

    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(("mode", "share", "warned"), [
    ("subprocess", "tenant", True),
    ("subprocess", "process", True),
    ("subprocess", "session", False),
    ("in-process", "tenant", False),
])  # fmt: skip
def test_sharing_a_server_across_processes_is_a_warning(tmp_path: Path, mode: str, share: str, warned: bool) -> None:
    """In subprocess mode each session starts its own: whoever planned memory for one server must know."""
    file = tmp_path / "agentao-gov.toml"
    file.write_text(f'[pool]\nmode = "{mode}"\n')
    profile = _profile(tmp_path, f'[mcp.servers.s]\ncommand = "x"\nshare = "{share}"\n')

    _, findings = inspect_profile(profile, deployment=load_deployment(str(file)))

    told = [(found.level, found.line) for found in findings if found.key == "mcp.servers.s.share"]
    assert told == ([("warning", 3)] if warned else [])


def test_a_misspelt_tool_is_a_warning_that_names_the_right_one(tmp_path: Path) -> None:
    """It may be a custom tool of whoever embeds the library; most likely it is a slip."""
    text = '[tools]\nallow = ["read_fil", "my_own"]\n[limits.tool_timeouts]\nrun_shel_command = "5s"\nmcp_x_y = "1s"\n'
    path = _profile(tmp_path, text)

    _, findings = inspect_profile(path)

    told = {(f.key, f.line, f.message.partition(";")[2].strip()) for f in findings if "no built-in tool" in f.message}
    assert ("tools.allow", 2, "did you mean 'read_file'?") in told
    assert ("limits.tool_timeouts.run_shel_command", 4, "did you mean 'run_shell_command'?") in told
    assert len(told) == 3
    assert all(f.level == "warning" and f.file == path for f in findings)


RULE = '[[tools.rules]]\ntool = "{tool}"\nwhen = {{ {argument} = "x*" }}\naction = "deny"\n'


@pytest.mark.parametrize(
    ("tool", "argument", "level", "words"),
    [
        ("run_shell_command", "comand", "error", "did you mean 'command'?"),
        ("read_file", "path", "error", "did you mean 'file_path'?"),
        ("reed_file", "file_path", "warning", "did you mean 'read_file'?"),
    ],
)
def test_a_rule_that_never_matches_is_found(tmp_path: Path, tool: str, argument: str, level: str, words: str) -> None:
    """One that is meant to deny would deny nothing."""
    _, findings = inspect_profile(_profile(tmp_path, RULE.format(tool=tool, argument=argument)))

    (found,) = (found for found in findings if found.key == "tools.rules")
    assert found.level == level
    assert words in found.message


@pytest.mark.parametrize("tool", ["run_shell_command", "run_*", "*", "mcp_files_read", "agent_reviewer"])
def test_a_rule_that_can_match_is_taken(tmp_path: Path, tool: str) -> None:
    """Patterns and MCP tools are not known beforehand."""
    _, findings = inspect_profile(_profile(tmp_path, RULE.format(tool=tool, argument="command")))

    assert [found for found in findings if found.key == "tools.rules"] == []


def test_a_shared_server_cannot_be_confined_to_a_session(tmp_path: Path) -> None:
    """It belongs to none."""
    text = '[mcp.servers.s]\ncommand = "true"\nshare = "process"\nsandbox = true\n'

    _, findings = inspect_profile(_profile(tmp_path, text))

    assert any(found.key == "mcp.servers.s.sandbox" and found.level == "error" for found in findings)


def test_the_known_tools_are_agentaos(tmp_path: Path) -> None:
    """Another version of agentao may have other names."""
    from agentao import Agentao
    from agentao.tools.web import WebFetchTool, WebSearchTool

    agent = Agentao(working_directory=tmp_path, api_key="k", base_url="http://127.0.0.1:9/v1", model="m")
    names = {*agent.tools.tools, WebFetchTool().name, WebSearchTool().name}
    arguments = {name: frozenset(agent.tools.tools[name].parameters["properties"]) for name in ARGUMENTS}
    agent.close()

    assert set(BUILT_IN) == names
    assert arguments == ARGUMENTS


def test_a_lowered_time_out_is_told_with_its_place(tmp_path: Path) -> None:
    """A profile that extends another with a shorter turn: the warning says whose line was lowered."""
    (tmp_path / "base.toml").write_text('[limits]\ntool_timeout = "80s"\n')
    path = _profile(tmp_path, 'extends = "base.toml"\n[limits]\nturn_timeout = "60s"\ntool_timeout = "50s"\n')
    short = Overrides(flags={"limits.turn_timeout": ("--timeout", "10s")})

    lowered = [f for f in load_profile(path, overrides=short).findings if f.adjusted]

    assert [(f.key, f.file, f.line) for f in lowered] == [("limits.tool_timeout", path, 4)]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[model]\nbase_url = "ftp://x/v1"\n', 2, "is not an http(s) address"),
        ('[model]\nbase_url = "localhost:8000"\n', 2, "is not an http(s) address"),
        ('[model]\nname = "m"\nbase_url = "http://me:hunter2@:99999/v1"\n', 3, "is not an http(s) address"),
        ('[model]\napi_key_env = "sk-proj-hunter2hunter2hunter2"\n', 2, "not the name of an environment variable"),
        ('[model]\napi_key_env = "AIzaSyHunter2hunter2hunter2hunter2"\n', 2, "not the name of an environment"),
        ('[model]\napi_key_env = "my key hunter2"\n', 2, "not the name of an environment variable"),
        ('[model]\nname = " "\n', 2, "must not be empty"),
    ],
)
@pytest.mark.parametrize("kind", ["profile", "deployment"])
def test_a_model_that_cannot_be_is_an_error_and_its_key_is_not_repeated(
    tmp_path: Path, kind: str, text: str, line: int, message: str
) -> None:
    """What `run` would stumble over, and what must not stand in a CI log."""
    path = _profile(tmp_path, text)

    _, findings = inspect_profile(path) if kind == "profile" else inspect_deployment(path, environ={})

    errors = [finding for finding in findings if finding.level == "error"]
    assert [(error.line, message in error.message) for error in errors] == [(line, True)]
    assert "unter2" not in str(errors[0])


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "my_openai_key", "KEY2", "AZURE_OPENAI_KEY_EASTUS2_PRODUCTION_01"])
def test_the_name_of_a_variable_is_no_key(name: str) -> None:
    """Long names and small letters are allowed."""
    assert not looks_like_a_key(name)
