"""MCP servers of a profile: references to variables, programs that are not there, and what is shown of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentao_gov.config import load_deployment, load_profile
from agentao_gov.config.mcp import shown_value
from agentao_gov.config.profile import McpServer
from agentao_gov.errors import ConfigError

PATH = {"PATH": "/usr/bin:/bin"}


def servers(tmp_path: Path, text: str, environ: dict[str, str]) -> dict[str, McpServer]:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return load_profile(file, environ={**PATH, **environ}).profile.mcp.servers


def test_references_get_their_values_where_the_profile_runs(tmp_path: Path) -> None:
    """In command, arguments, environment and directory; the file holds the name alone."""
    text = """
        [mcp.servers.s]
        command = "${PROGRAM}"
        args = ["--token", "${TOKEN}", "a${TOKEN}b"]
        env = { TOKEN = "${TOKEN}", COST = "$5 and $${TOKEN}" }
        cwd = "~/work"
    """

    server = servers(tmp_path, text, {"PROGRAM": "sh", "TOKEN": "t"})["s"]

    assert server.command == "sh"
    assert server.args == ["--token", "t", "atb"]
    assert server.env == {"TOKEN": "t", "COST": "$5 and ${TOKEN}"}
    assert server.cwd == str(Path("~/work").expanduser())


@pytest.mark.parametrize("field", ['args = ["${GONE}"]', 'env = { A = "${GONE}" }', 'cwd = "${GONE}"'])
def test_a_variable_that_is_not_set_is_named(tmp_path: Path, field: str) -> None:
    """An empty token would be sent, refused, and looked for in the wrong place."""
    text = f'[mcp.servers.s]\ncommand = "sh"\n{field}\n'

    with pytest.raises(
        ConfigError, match=r"mine\.toml:3: mcp\.servers\.s\..*the environment variable GONE, which is not"
    ):
        servers(tmp_path, text, {})


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("pyhton3", "no program 'pyhton3' on PATH; did you mean 'python3'?"),
        ("/no/such", "no program '/no/such' that may be run"),
        ("sh", None),
        ("./from-the-session", None),
    ],
)
def test_a_program_that_is_not_there_is_a_warning(tmp_path: Path, command: str, told: str | None) -> None:
    """Found before a turn has to do without the server, and a line that says which."""
    file = tmp_path / "mine.toml"
    file.write_text(f'[mcp.servers.s]\ncommand = "{command}"\n')

    findings = load_profile(file, environ=PATH).findings

    said = [str(each) for each in findings if each.key == "mcp.servers.s.command"]
    assert len(said) == (told is not None)
    assert all(told in each for each in said if told)


def test_the_environment_reaches_a_servers_own_variables(tmp_path: Path) -> None:
    """Their names tell capitals from small letters; servers and tenants are found as the files write them."""
    file = tmp_path / "mine.toml"
    file.write_text('[mcp.servers.Files]\ncommand = "sh"\nenv = { tok = "a" }\n')
    deployment = tmp_path / "agentao-gov.toml"
    deployment.write_text("[tenants.Acme]\n")
    environ = {
        **PATH,
        "AGENTAO_GOV__MCP__SERVERS__FILES__ENV__API_KEY": "b",
        "AGENTAO_GOV__MCP__SERVERS__FILES__ENV__TOK": "c",
        "AGENTAO_GOV__TENANTS__ACME__MAX_SESSIONS": "3",
    }

    profile = load_profile(file, environ=environ).profile
    tenants = load_deployment(deployment, environ=environ).deployment.tenants

    assert profile.mcp.servers["Files"].env == {"tok": "c", "API_KEY": "b"}
    assert tenants["Acme"].max_sessions == 3


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("args", ["--token", "s3cret", "--key=s3cret", "-v", "s3cret"], ["--token", "***", "--key=***", "-v", "***"]),
        ("env.TOKEN", "s3cret", "***"),
        ("headers.Authorization", "Bearer s3cret", "***"),
        ("url", "https://u:s3cret@h/mcp?token=s3cret", "https://***@h/mcp?***"),
        ("command", "npx", "npx"),
    ],
)
def test_what_may_be_secret_is_not_shown(field: str, value: object, shown: object) -> None:
    """A screen is shared, and a CI log is public."""
    assert shown_value(field, value) == shown
