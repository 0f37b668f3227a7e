"""init, profile, config and tenant: what they write, show and judge."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path

import pytest

from agentao_gov.config import load_deployment
from tests.commands.conftest import Cli


def test_init_writes_a_deployment_and_the_profiles(cli: Cli, here: Path) -> None:
    """What it writes is valid, complete and explained."""
    result = cli("init")

    assert result.code == 0
    assert sorted(path.name for path in (here / "profiles").iterdir()) == ["code.toml", "qa.toml", "research.toml"]
    assert cli("config", "check", "--strict").code == 0
    assert (here / "agentao-gov.toml").read_text().count("#") > 40


def test_init_writes_every_cap_that_the_checklist_asks_for(cli: Cli, here: Path) -> None:
    """Tenant caps, daily budgets and the capacity plan have no default: `init` is where they come from."""
    cli("init")

    deployment = load_deployment().deployment

    default = deployment.tenants["default"]
    assert None not in (default.max_sessions, default.max_sessions_per_user, default.daily_tokens)
    budget = deployment.budget
    assert None not in (budget.tenant_daily_tokens, budget.user_daily_tokens, budget.session_daily_tokens)
    capacity = deployment.capacity
    assert None not in (capacity.sessions, capacity.mcp_processes, capacity.memory_bytes)


def test_init_never_overwrites(cli: Cli, here: Path) -> None:
    """A second run, and one over files of one's own, leaves every byte."""
    (here / "agentao-gov.toml").write_text("# mine\n")

    result = cli("init")

    assert result.code == 0
    assert (here / "agentao-gov.toml").read_text() == "# mine\n"
    assert "kept   agentao-gov.toml" in result.out


def test_init_elsewhere_says_where_to_go_next(cli: Cli, here: Path) -> None:
    """The next commands read the directory they are typed in."""
    result = cli("init", "my service")

    assert (here / "my service" / "agentao-gov.toml").is_file()
    assert "Next: cd 'my service', then agentao-gov config check" in result.err


def test_init_in_a_place_that_cannot_be_written_says_so(cli: Cli, here: Path) -> None:
    """A file where a directory is needed: one message, code 3."""
    (here / "profiles").write_text("")

    result = cli("init")

    assert result.code == 3
    assert "cannot be written" in result.err


def test_profile_list_shows_names_and_places(cli: Cli, here: Path) -> None:
    """Plain lines where nobody looks at a terminal; a broken profile is listed as such."""
    (here / "profiles").mkdir()
    (here / "profiles" / "broken.toml").write_text("[limits]\nmax_iterations = -1\n")

    lines = cli("profile", "list").out.splitlines()

    assert lines[0] == "name\ttask\ttier\tdescription\tpath"
    assert [line.split("\t")[0] for line in lines[1:]] == ["broken", "code", "qa", "research"]
    assert "profile check" in lines[1]


def test_profile_show_prints_every_value_with_its_source(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are TOML; the comments say where each value came from."""
    monkeypatch.setenv("AGENTAO_GOV__LIMITS__LLM_RETRIES", "5")

    result = cli("profile", "show", "qa", "--set", "limits.turn_timeout=80s")

    values = tomllib.loads(result.out)
    assert values["limits"]["turn_timeout"] == "80s"
    assert values["limits"]["llm_retries"] == 5
    sources = {line.split(" = ")[0]: line.rsplit("  # ", 1)[1] for line in result.out.splitlines() if " = " in line}
    assert sources["limits.turn_timeout"] == "--set limits.turn_timeout"
    assert sources["limits.llm_retries"] == "environment AGENTAO_GOV__LIMITS__LLM_RETRIES"
    assert sources["limits.max_iterations"] == "profile qa"
    assert sources["tools.sub_agents"] == "default"


def test_profile_show_as_json_has_the_same_values(cli: Cli) -> None:
    """For scripts."""
    record = cli("profile", "show", "code", "--json").json

    assert record["values"]["limits.max_iterations"] == {"value": 120, "source": "profile code"}


def test_profile_show_hides_what_servers_are_given(cli: Cli, here: Path) -> None:
    """Environments of MCP servers hold keys."""
    (here / "x.toml").write_text('[mcp.servers.s]\ncommand = "c"\nenv = { KEY = "sk-secret" }\n')

    result = cli("profile", "show", "./x.toml")

    assert result.code == 0
    assert "sk-secret" not in result.out
    assert "KEY" in result.out


def test_profile_new_copies_comments_and_never_overwrites(cli: Cli, here: Path) -> None:
    """The copy loads under its own name; a second one is refused."""
    first, second = cli("profile", "new", "mine", "--from", "code"), cli("profile", "new", "mine")

    assert (first.code, second.code) == (0, 2)
    text = (here / "profiles/mine.toml").read_text()
    assert "# Costs:" in text
    assert tomllib.loads(text)["name"] == "mine"
    assert cli("profile", "check", "mine").code == 0


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_profile_new_refuses_names_that_are_paths(cli: Cli, here: Path, name: str) -> None:
    """Nothing is written outside the profile directory."""
    assert cli("profile", "new", name).code == 2
    assert list(here.iterdir()) == []


def test_profile_check_tells_errors_from_warnings(cli: Cli, here: Path) -> None:
    """Errors fail with 3, warnings only under --strict; both name the place."""
    (here / "w.toml").write_text('task = "qa"\n[limits]\nmax_iterations = 90\n')
    (here / "e.toml").write_text("[limits]\nmax_iteration = 90\n")

    warned, strict, failed = (
        cli("profile", "check", "w.toml"),
        cli("profile", "check", "--strict", "w.toml"),
        cli("profile", "check", "w.toml", "e.toml", "--json"),
    )

    assert (warned.code, strict.code, failed.code) == (0, 3, 3)
    assert "w.toml:3: warning: limits.max_iterations: 90 is outside 20-30" in warned.err
    assert warned.out == "0 errors, 1 warning\n"
    assert [f["line"] for f in failed.json["findings"]] == [3, 2]


def test_config_check_looks_at_the_profiles_of_tenants(cli: Cli, here: Path) -> None:
    """A profile that a tenant is allowed, but that does not exist, shows before the first request."""
    (here / "agentao-gov.toml").write_text('[tenants.acme]\nmax_sessions = 5\nprofiles = ["qa", "qb"]\n')

    result = cli("config", "check")

    assert result.code == 3
    assert "agentao-gov.toml:3: error: tenants.acme.profiles: there is no profile 'qb'" in result.err


def test_config_check_sees_what_only_a_later_command_would_stumble_over(cli: Cli, here: Path) -> None:
    """A mistyped threshold is a gate that is missing, a mistyped directory a profile that is not yours."""
    (here / "agentao-gov.toml").write_text(
        '[loadtest]\nthresholds = ["turn_p59x<3s"]\n[profiles]\ndir = "profils"\n[budget]\nprices = "none.toml"\n'
    )

    result, examined = cli("config", "check"), cli("doctor", "--json")

    assert result.code == 3
    assert "agentao-gov.toml:6: error: budget.prices:" in result.err
    assert {"prices": "fail"}.items() <= {line["id"]: line["status"] for line in examined.json["checks"]}.items()
    assert "agentao-gov.toml:2: error: loadtest.thresholds:" in result.err
    assert "agentao-gov.toml:4: warning: profiles.dir: there is no directory" in result.err


def test_a_profile_above_the_window_of_the_deployments_model_is_a_warning(cli: Cli, here: Path) -> None:
    """A turn on that model would end with 3; another may be chosen, and what was shipped is fitted."""
    (here / "agentao-gov.toml").write_text('[model]\nname = "m"\ncontext_window = 32_000\n')
    (here / "mine.toml").write_text("[limits]\nmax_context_tokens = 30_000\n")

    own, shipped = cli("profile", "check", "mine.toml"), cli("profile", "check", "code")

    assert own.code == shipped.code == 0
    assert "mine.toml:2: warning: limits.max_context_tokens: 30,000 is above 25,600" in own.err
    assert "window" not in shipped.err


def test_config_show_prints_defaults_where_there_is_no_file(cli: Cli) -> None:
    """And hides the password of a store."""
    result = cli("config", "show", "--set", "budget.store=redis://me:hunter2@host:6379/0")

    assert result.code == 0
    assert "pool.max_sessions = 500" in result.out
    assert "# budget.tenant_daily_tokens is not set" in result.out
    assert "hunter2" not in result.out
    assert "redis://***@host:6379/0" in result.out


def test_tenant_new_prints_a_key_once_and_writes_its_hash(cli: Cli, here: Path) -> None:
    """The file keeps its comments and gets the hash alone; the tenant starts with the default's caps."""
    cli("init")
    before = (here / "agentao-gov.toml").read_text()

    result = cli("tenant", "new", "acme")

    key = result.out.strip()
    text = (here / "agentao-gov.toml").read_text()
    acme = load_deployment().deployment.tenants["acme"]
    assert acme.api_key_sha256 == [hashlib.sha256(key.encode()).hexdigest()]
    assert (acme.max_sessions, acme.max_sessions_per_user, acme.daily_tokens) == (50, 5, 2_000_000)
    assert key not in text
    assert [line for line in before.splitlines() if "#" in line] == [line for line in text.splitlines() if "#" in line]
    assert key not in result.err


def test_a_second_key_of_a_tenant_is_added_to_the_first(cli: Cli, here: Path) -> None:
    """Keys are rotated without a moment in which none is valid."""
    (here / "agentao-gov.toml").write_text("[tenants.acme]\nmax_sessions = 3\n")

    keys = [cli("tenant", "new", "acme", "--json").json["api_key"] for _ in range(2)]

    acme = load_deployment().deployment.tenants["acme"]
    assert acme.api_key_sha256 == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    assert acme.max_sessions == 3
    assert "acme\t2\t3\t" in cli("tenant", "list").out


@pytest.mark.parametrize(
    ("content", "code"), [(None, 3), ("[pool\n", 3), ("[pool]\nmax_sesions = 3\n", 3), ("tenants = 3\n", 3)]
)
def test_tenant_new_leaves_a_file_it_cannot_change_as_it_was(
    cli: Cli, here: Path, content: str | None, code: int
) -> None:
    """No key is printed that no file knows, and nothing is half-written."""
    if content is not None:
        (here / "agentao-gov.toml").write_text(content)

    result = cli("tenant", "new", "acme")

    assert (result.code, result.out) == (code, "")
    assert [path.read_text() for path in here.iterdir()] == ([content] if content is not None else [])


def test_tenant_new_keeps_the_mode_of_the_file(cli: Cli, here: Path) -> None:
    """A private deployment file stays private."""
    file = here / "agentao-gov.toml"
    file.write_text("")
    file.chmod(0o640)

    cli("tenant", "new", "acme")

    assert file.stat().st_mode & 0o777 == 0o640


def test_the_name_default_gets_no_key(cli: Cli, here: Path) -> None:
    """`default` is what tenants without an entry get; a key would make it one."""
    (here / "agentao-gov.toml").write_text("")

    result = cli("tenant", "new", "default")

    assert result.code == 2
    assert "stands for every tenant that is not listed" in result.err


def test_tenant_list_as_json(cli: Cli, here: Path) -> None:
    """For scripts; without the hashes."""
    (here / "agentao-gov.toml").write_text('[tenants.a]\napi_key_sha256 = ["' + "0" * 64 + '"]\n')

    (row,) = json.loads(cli("tenant", "list", "--json").out)

    assert (row["name"], row["keys"], row["max_sessions"]) == ("a", 1, None)
    assert "api_key_sha256" not in row


def test_no_command_shows_what_may_be_secret(cli: Cli, here: Path) -> None:
    """Passwords in addresses; arguments and environments of MCP servers: as text and as JSON."""
    (here / "agentao-gov.toml").write_text(
        '[model]\nname = "m"\nbase_url = "http://u:s3cret@127.0.0.1:9/v1"\n[budget]\nstore = "redis://:s3cret@h/0"\n'
    )
    (here / "mine.toml").write_text(
        '[model]\nbase_url = "http://u:s3cret@h/v1"\n[mcp.servers.s]\ncommand = "sh"\n'
        'args = ["--token", "s3cret"]\nenv = { TOKEN = "s3cret" }\n'
    )

    shown = [
        cli(*command, *as_json)
        for command in (("config", "show"), ("profile", "show", "mine.toml"), ("doctor",))
        for as_json in ((), ("--json",))
    ]

    assert all("s3cret" not in result.out + result.err for result in shown)
    assert all("http" in result.out for result in shown)


def test_an_mcp_server_that_cannot_start_is_found_before_a_turn_needs_it(cli: Cli, here: Path) -> None:
    """By `profile check` with file and line, and by `doctor` in a line of its own."""
    (here / "profiles").mkdir()
    (here / "profiles" / "mine.toml").write_text('extends = "qa"\n[mcp.servers.files]\ncommand = "pyhton3"\n')

    checked, examined = cli("profile", "check", "mine"), cli("doctor", "--json")

    assert "mine.toml:3: warning: mcp.servers.files.command: there is no program 'pyhton3' on PATH" in checked.err
    (line,) = (line for line in examined.json["checks"] if line["id"] == "mcp-files")
    assert (line["status"], "mine.toml:3" in line["remedy"]) == ("warn", True)
