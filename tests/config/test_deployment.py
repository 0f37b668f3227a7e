"""The deployment file: where it is found, what is refused, what is only unwise."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from agentao_gov.config import Overrides, find_deployment, inspect_deployment, is_loopback, load_deployment
from agentao_gov.config.schema import deployment_schema
from agentao_gov.errors import ConfigError

_HASH = "0" * 64


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _file(here: Path, text: str) -> Path:
    path = here / "agentao-gov.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_contracts_defaults_hold(here: Path) -> None:
    """And caps, budgets and the capacity plan are unlimited: absent is not a number."""
    resolved = load_deployment(environ={})

    deployment = resolved.deployment
    assert resolved.path is None
    assert (deployment.server.host, deployment.server.port, deployment.server.shutdown_budget_s) == (
        "127.0.0.1",
        8080,
        25,
    )
    assert (deployment.pool.mode, deployment.pool.max_sessions, deployment.pool.max_busy) == ("in-process", 500, 64)
    assert (deployment.pool.session_ttl_s, deployment.pool.retain_hibernated_s) == (1800, 604800)
    assert (deployment.budget.store, deployment.budget.warn_at) == ("sqlite", [0.8, 0.95])
    assert deployment.budget.tenant_daily_tokens is deployment.capacity.sessions is None
    assert deployment.tenants == {}
    assert resolved.state_dir == Path("~/.local/state/agentao-gov").expanduser()


def test_the_file_is_found_by_flag_variable_and_directory(here: Path) -> None:
    """In this order."""
    local = _file(here, "")

    assert find_deployment("a.toml", {"AGENTAO_GOV_CONFIG": "b.toml"}) == Path("a.toml")
    assert find_deployment(None, {"AGENTAO_GOV_CONFIG": "b.toml"}) == Path("b.toml")
    assert find_deployment(None, {}) == Path(local.name)


def test_a_named_file_that_is_missing_is_an_error(here: Path) -> None:
    """Also one named by the variable: a service must not start with defaults by accident."""
    with pytest.raises(ConfigError, match=r"'b\.toml' does not exist"):
        load_deployment(environ={"AGENTAO_GOV_CONFIG": "b.toml"})


def test_every_value_has_its_source(here: Path) -> None:
    """File, environment, --set, flag, default, in rising order of strength."""
    _file(here, "[pool]\nmax_sessions = 1\nmax_busy = 1\nqueue_limit = 1\nsession_ttl = 1\n")
    environ = {"AGENTAO_GOV__POOL__MAX_BUSY": "2", "AGENTAO_GOV__POOL__QUEUE_LIMIT": "2"}
    overrides = Overrides({"pool.mode": ("--mode", "fresh")}, ("pool.queue_limit=3",))

    resolved = load_deployment(overrides=overrides, environ=environ)

    pool = resolved.deployment.pool
    assert (pool.max_sessions, pool.max_busy, pool.queue_limit, pool.mode) == (1, 2, 3, "fresh")
    assert resolved.source("pool.max_sessions") == "file agentao-gov.toml"
    assert resolved.source("pool.max_busy") == "environment AGENTAO_GOV__POOL__MAX_BUSY"
    assert resolved.source("pool.queue_limit") == "--set pool.queue_limit"
    assert resolved.source("pool.mode") == "flag --mode"
    assert resolved.source("pool.queue_timeout") == "default"


def test_the_state_variable_overrides_the_file(here: Path) -> None:
    """Relative to the file where it is relative; the source says which."""
    _file(here, '[state]\ndir = "var"\n')

    own, moved = load_deployment(environ={}), load_deployment(environ={"AGENTAO_GOV_STATE": "/srv/state"})

    assert own.state_dir == here / "var"
    assert own.ledger_path == here / "var" / "ledger.db"
    assert moved.state_dir == Path("/srv/state")
    assert moved.source("state.dir") == "environment AGENTAO_GOV_STATE"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[pool]\nmax_sesions = 3\n", 2, "unknown key; did you mean pool.max_sessions?"),
        ("[pol]\nmax_sessions = 3\n", 1, "unknown key; did you mean pool?"),
        ("[tenants.acme]\ndaily_token = 3\n", 2, "unknown key; did you mean tenants.acme.daily_tokens?"),
        ("[pool]\nmax_sessions = 0\n", 2, "must be at least 1, not 0"),
        ("[pool]\nqueue_limit = -1\n", 2, "must be at least 0, not -1"),
        ('[pool]\nmode = "cloud"\n', 2, "must be one of 'fresh', 'in-process', 'subprocess', not 'cloud'"),
        ("[server]\nport = 70000\n", 2, "must be at most 65535, not 70000"),
        ('[budget]\ntimezone = "Mars/Olympus"\n', 2, "'Mars/Olympus' is not an IANA time zone"),
        ('[budget]\ntimezone = "../../etc/passwd"\n', 2, "is not an IANA time zone"),
        ('[tenants.acme]\ntimezone = "Nowhere"\n', 2, "'Nowhere' is not an IANA time zone"),
        ('[budget]\nstore = "mysql"\n', 2, "must be sqlite, memory or an address like redis://"),
        ("[budget]\nwarn_at = [0.5, 1.5]\n", 2, "must be at most 1, not 1.5"),
        ("[budget]\nsession_daily_tokens = 0\n", 2, "must be more than 0"),
        ('[tenants.acme]\napi_key_sha256 = ["plain-key"]\n', 2, "does not have the form"),
        ('[tenants."a/b"]\n', 1, "'a/b' cannot be a tenant's name"),
        ('[capacity]\nmemory = "lots"\n', 2, "is not a size such as 512MiB"),
        ('[shutdown]\ndrain = "30s"\n', 1, "the rungs add up to 43s, more than the shutdown_budget of 25s"),
        ('[server]\nhost = "0.0.0.0"\n', 2, "0.0.0.0 is not loopback, and no tenant has an api key"),
        ('[server]\nmax_body = "1KiB"\n', None, "is larger than max_body"),
        (
            f'[tenants.a]\napi_key_sha256 = ["{_HASH}"]\n[tenants.b]\napi_key_sha256 = ["{_HASH}"]\n',
            4,
            "the same key also belongs to tenant 'a'",
        ),
    ],
)
def test_an_impossible_value_is_an_error_with_its_line(here: Path, text: str, line: int | None, message: str) -> None:
    """Each with what is wrong; an unknown time zone is found at the start, not at midnight."""
    _file(here, text)

    _, findings = inspect_deployment(environ={})

    errors = [finding for finding in findings if finding.level == "error"]
    assert any(message in error.message and error.line == line for error in errors), findings


def test_a_key_of_a_tenant_opens_the_world(here: Path) -> None:
    """With a key configured the service may listen anywhere."""
    _file(here, f'[server]\nhost = "0.0.0.0"\n[tenants.a]\napi_key_sha256 = ["{_HASH}"]\n')

    assert load_deployment(environ={}).deployment.server.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[pool]\nmax_sessions = 5\nmax_busy = 6\n", "pool.max_busy"),
        ('[pool]\nsession_memory = "1GiB"\n', "pool.session_memory"),
        ("[budget]\nuser_daily_tokens = 10\nsession_daily_tokens = 20\n", "budget.session_daily_tokens"),
        ("[tenants.a]\nmax_sessions = 501\n", "tenants.a.max_sessions"),
    ],
)
def test_what_nobody_can_have_meant_is_a_warning(here: Path, text: str, key: str) -> None:
    """It can be run with."""
    _file(here, text)

    assert [finding.key for finding in load_deployment(environ={}).findings] == [key]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("127.0.0.1.example.org", False)],
)  # fmt: skip
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    """A name that only looks like loopback is not."""
    assert is_loopback(host) == loopback


def test_the_schema_accepts_what_init_writes() -> None:
    """An editor marks nothing in the starter file."""
    from agentao_gov import config

    template = Path(config.__file__).parent / "agentao-gov.template.toml"

    assert list(Draft202012Validator(deployment_schema()).iter_errors(tomllib.loads(template.read_text()))) == []
