"""The shipped profiles: they load, agree with the published recommendations, and change only on purpose."""

from __future__ import annotations

import tomllib

import pytest
from jsonschema import Draft202012Validator

from agentao_gov.config import load_profile
from agentao_gov.config.schema import deployment_schema, profile_schema
from agentao_gov.resources import shipped

NAMES = ("qa", "code", "research")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_loads_without_a_finding(name: str) -> None:
    """What we ship is what the tables recommend."""
    resolved = load_profile(name)

    assert resolved.profile.name == resolved.profile.task == name
    assert resolved.findings == ()


def test_the_shipped_limits_are_these() -> None:
    """A change of a shipped limit changes everybody's bill: it has to be made here too."""
    found = {
        name: (
            limits.max_context_tokens,
            limits.max_output_tokens,
            limits.max_iterations,
            limits.turn_timeout_s,
            limits.cancel_grace_s,
            limits.tool_timeout_s,
            limits.turn_tokens,
            limits.llm_retries,
        )
        for name in NAMES
        for limits in [load_profile(name).profile.limits]
    }

    assert found == {
        "qa": (64_000, 4_096, 25, 90.0, 2.0, 20.0, 100_000, 2),
        "code": (120_000, 16_384, 120, 900.0, 5.0, 60.0, 1_500_000, 3),
        "research": (128_000, 16_384, 300, 1800.0, 5.0, 60.0, 5_000_000, 4),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_grants_no_more_than_its_header_says(name: str) -> None:
    """Only `code` may run commands; none starts sub-agents or has full access."""
    tools = load_profile(name).profile.tools

    assert ("run_shell_command" in tools.allow) == (name == "code")
    assert tools.permission_mode == ("read-only" if name == "qa" else "workspace-write")
    assert not tools.sub_agents


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_profile_has_a_header_that_tells_its_cost(name: str) -> None:
    """Profiles teach: who it is for, what it allows, what it costs."""
    text = (shipped("profiles") / f"{name}.toml").read_text()

    assert all(word in text.split("name =")[0] for word in ("For:", "Allows:", "Costs:"))


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_accepts_the_shipped_profiles(name: str) -> None:
    """An editor that uses the schema marks nothing in them."""
    values = tomllib.loads((shipped("profiles") / f"{name}.toml").read_text())

    assert list(Draft202012Validator(profile_schema()).iter_errors(values)) == []


@pytest.mark.parametrize(
    "values", [{"limits": {"turn_timout": "3s"}}, {"limits": {"max_iterations": 0}}, {"limits": {"turn_timeout": "x"}}]
)
def test_the_schema_refuses_what_the_loader_refuses(values: dict[str, object]) -> None:
    """Unknown keys, impossible numbers and wrong units are marked while typing."""
    assert list(Draft202012Validator(profile_schema()).iter_errors(values))


def test_the_schemas_are_schemas() -> None:
    """Both are valid drafts of 2020-12."""
    Draft202012Validator.check_schema(profile_schema())
    Draft202012Validator.check_schema(deployment_schema())
