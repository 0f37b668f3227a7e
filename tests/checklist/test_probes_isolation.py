"""The wall between tenants: where a profile's tools reach beyond their session, the eighth item fails and says how."""

from __future__ import annotations

import pytest

from tests.checklist.conftest import House

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("mode", ["in-process", "fresh", "subprocess"])
def test_tools_that_keep_to_their_session_pass(house: House, mode: str) -> None:
    """The shipped profile for questions reads files of its own session alone, in every hosting mode."""
    house.deployment["pool"] = {"mode": mode}

    report = house.walk("tenant_isolation")

    item = report.items[-1]
    assert (item.id, item.status) == ("tenant_isolation", "pass"), report.to_json()
    assert any(line.startswith("[pass] profile qa: read_file reaches neither") for line in item.evidence)


def test_a_shell_without_a_sandbox_is_no_wall(house: House) -> None:
    """Where a rule lets commands run, the service's key and the other tenant's letter are read, and named."""
    house.profile("code")["tools"] |= {
        "sandbox": "off",
        "rules": [{"tool": "run_shell_command", "action": "allow"}],
    }

    report = house.walk("tenant_isolation", profile="code")

    item = report.items[-1]
    assert item.status == "fail"
    assert "reads the service's environment" in item.observed
    assert "reads another tenant's file" in item.observed
    assert item.remedy is not None
    house.mend(item.remedy)
    assert house.walk("tenant_isolation", profile="code").items[-1].status == "pass"


def test_the_shipped_profile_with_a_shell_keeps_tenants_apart(house: House) -> None:
    """Its sandbox holds, or refuses the shell where this machine has none."""
    report = house.walk("tenant_isolation", profile="code")

    assert report.items[-1].status == "pass", report.to_json()
