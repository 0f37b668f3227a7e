"""What is put under load is the user's configuration, but for what a test must not touch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.config import load_deployment
from agentao_gov.errors import ConfigError, UsageError
from agentao_gov.loadtest.faults import load_faults
from agentao_gov.loadtest.target import Target, _derived, check_ownership

DEPLOYMENT = """
[server]
host = "127.0.0.1"
port = 8080
[pool]
max_busy = 7
[budget]
store = "sqlite"
path = "precious.db"
session_daily_tokens = 1000
[tenants.acme]
api_key_sha256 = ["aa00000000000000000000000000000000000000000000000000000000000000"]
max_sessions = 3
daily_tokens = 5000
[state]
dir = "precious"
"""


def derive(tmp_path: Path, *, room: int | None, only: tuple[str, ...] = ()) -> tuple[dict[str, Any], Target]:
    path = tmp_path / "agentao-gov.toml"
    path.write_text(DEPLOYMENT)
    target = Target("", {}, ())
    return _derived(load_deployment(path, environ={}), target, room, only), target


def test_limits_stay_and_places_do_not(tmp_path: Path) -> None:
    """Caps as configured; ledger and keys are the run's own."""
    config, target = derive(tmp_path, room=None)

    assert config["pool"]["max_busy"] == 7
    assert config["tenants"]["acme"]["max_sessions"] == 3
    assert config["tenants"]["acme"]["daily_tokens"] == 5000
    assert "precious" not in str(config["budget"])
    key = target.keys["acme"]
    assert config["tenants"]["acme"]["api_key_sha256"] == [hashlib.sha256(key.encode()).hexdigest()]
    assert target.tenants == ("acme",)


def test_budgets_make_room_and_say_so(tmp_path: Path) -> None:
    """A load test is about load; the report tells that budgets were raised."""
    config, target = derive(tmp_path, room=1_000_000)

    assert config["budget"]["session_daily_tokens"] == 1_000_000
    assert config["tenants"]["acme"]["daily_tokens"] == 1_000_000
    assert any("daily budgets" in text for text in target.differences)


def test_an_unknown_tenant_is_named(tmp_path: Path) -> None:
    """With the tenants there are."""
    with pytest.raises(ConfigError, match="acme"):
        derive(tmp_path, room=None, only=("globex",))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:80"])
def test_this_machine_may_be_loaded(url: str) -> None:
    """Loopback needs no word."""
    check_ownership(url, owned=False)


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1", "https://127.0.0.1.example.com"])
def test_others_need_a_word(url: str) -> None:
    """Load on someone else's service is an attack."""
    with pytest.raises(UsageError, match="not this machine"):
        check_ownership(url, owned=False)
    check_ownership(url, owned=True)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://", "file:///etc/passwd"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """Also when it is owned."""
    with pytest.raises(UsageError, match="http"):
        check_ownership(url, owned=True)


@pytest.mark.parametrize(
    "text",
    ["", "[[fault]]\nat='1s'", "[[fault]]\nat='x'\nkind='hang'", "[[fault]]\nat='1s'\nkind='rain'", "fault=1", "[["],
)
def test_a_wrong_fault_script_is_a_configuration_error(text: str, tmp_path: Path) -> None:
    """Before anything starts."""
    path = tmp_path / "faults.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"faults\.toml"):
        load_faults(path)


def test_a_fault_script_that_is_no_text_is_a_configuration_error(tmp_path: Path) -> None:
    """Not an internal one."""
    path = tmp_path / "faults.toml"
    path.write_bytes(b"\x00\xff\xfe")

    with pytest.raises(ConfigError, match=r"faults\.toml is no TOML"):
        load_faults(path)


def test_faults_are_played_in_the_order_of_time(tmp_path: Path) -> None:
    """Whatever the order in the file."""
    path = tmp_path / "faults.toml"
    path.write_text("[[fault]]\nat='9s'\nkind='hang'\n[[fault]]\nat='500ms'\nfor='2s'\nkind='429'\n")

    assert [(f.at_s, f.for_s, f.kind) for f in load_faults(path)] == [(0.5, 2.0, "429"), (9.0, 5.0, "hang")]
