"""Every fault is played at a real service: what its turns ended as, how soon it was well again, what stayed behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.loadtest.document import schema
from agentao_gov.loadtest.faults import load_faults
from tests.loadtest.own import start_run

#: What the turns that meet a fault of the model end as, when they cannot be answered.
ENDS = {
    "slow_first_token": {"turn_timeout"},
    "drip": {"turn_timeout"},
    "hang": {"turn_timeout"},
    "429": {"model_error"},
    "500": {"model_error"},
    "drop": {"model_error", "incomplete"},
    "malformed": {"model_error", "incomplete"},
    "endless_tools": {"max_iterations"},
}


def script(folder: Path, kinds: list[str], *, first_s: float, every_s: float, for_s: float) -> str:
    path = folder / "faults.toml"
    path.write_text(
        "\n".join(
            f'[[fault]]\nat = "{first_s + number * every_s}s"\nfor = "{for_s}s"\nkind = "{kind}"'
            for number, kind in enumerate(kinds)
        )
    )
    return str(path)


def played(
    folder: Path, kinds: list[str], *flags: str, first_s: float = 4, every_s: float, for_s: float, pool: str = ""
) -> dict[str, Any]:
    length_s = first_s + every_s * len(kinds) + 6
    faults = script(folder, kinds, first_s=first_s, every_s=every_s, for_s=for_s)
    load = ("--rate", "4", "--turns", "2", "--duration", f"{length_s}s", "--threshold", "answered_rate>=1%")
    run = start_run(folder, *load, "--faults", faults, "--report", "report", *flags, pool=pool)
    code, report, error = run.end()
    assert code in (0, 11), error
    jsonschema.validate(report, schema())
    assert [fault["kind"] for fault in report["faults"]] == kinds
    page, text = ((folder / "report" / name).read_text() for name in ("report.html", "summary.md"))
    for fault in report["faults"]:
        assert fault["played"], fault
        assert fault["turns_met"] == sum(fault["outcomes"].values()) > 0
        assert fault["recovery_s"] is not None
        # Marked on the charts, and in the table that stands for them elsewhere.
        assert f"<title>{fault['kind']}</title>" in page
        assert fault["kind"].replace("_", "\\_") in text
    return {fault["kind"]: fault for fault in report["faults"]}


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_each_fault_of_the_model_has_its_ends(tmp_path: Path) -> None:
    """Eight kinds, each with the outcome it must lead to; nothing stays behind and turns are answered again."""
    faults = played(tmp_path, list(ENDS), every_s=7, for_s=2)

    for kind, ends in ENDS.items():
        assert ends & set(faults[kind]["outcomes"]), faults[kind]
        assert faults[kind]["left_behind"]["children"] == 0
        assert faults[kind]["left_behind"]["threads_abandoned"] == 0


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_killed_session_process_costs_its_own_turn(tmp_path: Path) -> None:
    """The turn ends as an internal error, its neighbours are answered."""
    # A model that takes its time: there is always a turn to be killed.
    slow = ("--first-token", "1500ms")
    fault = played(tmp_path, ["kill_session"], *slow, first_s=10, every_s=10, for_s=2, pool='mode = "subprocess"')[
        "kill_session"
    ]

    assert fault["outcomes"].get("internal_error") == 1, fault
    assert fault["outcomes"].get("answered", 0) > 0


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    """Its turns lose their connection, its warden starts another, and turns are answered within seconds."""
    fault = played(tmp_path, ["kill_worker"], every_s=20, for_s=2)["kill_worker"]

    assert fault["outcomes"].get("connection_error", 0) > 0, fault
    assert fault["recovery_s"] > 1.0
    assert fault["left_behind"]["children"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "fault"),
        ('[[fault]]\nat = "1s"\nkind = "earthquake"', "fault.0.kind"),
        ('[[fault]]\nkind = "hang"', "fault.0.at"),
        ('[[fault]]\nat = "soon"\nkind = "hang"', "fault.0.at"),
        ('[[fault]]\nat = "1s"\nkind = "hang"\nfore = "2s"', "fault.0.fore"),
        ("[[fault]", "faults.toml"),
    ],
)
def test_a_script_that_cannot_be_read_says_where(tmp_path: Path, text: str, said: str) -> None:
    """The file and the key."""
    path = tmp_path / "faults.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=said):
        load_faults(path)
