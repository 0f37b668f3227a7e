"""`agentao-gov budget` as people and scripts use it."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.budget import ReserveRequest, open_ledger, scope_limits
from agentao_gov.clock import Deadline
from agentao_gov.config import ResolvedDeployment, load_deployment
from agentao_gov.main import main

FILE = """
[budget]
tenant_daily_tokens = 5_000
user_daily_tokens = 2_000
session_daily_tokens = 1_000

[tenants.acme]
daily_tokens = 8_000
timezone = "Pacific/Kiritimati"

# Always another date than the tenant above: 25 hours behind it.
[tenants.quiet]
timezone = "Pacific/Pago_Pago"

[state]
dir = "{state}"
"""


@pytest.fixture
def deployment_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("AGENTAO_GOV_STATE")
    file = tmp_path / "agentao-gov.toml"
    file.write_text(FILE.format(state=tmp_path / "state"))
    return file


@pytest.fixture
def deployment(deployment_file: Path) -> ResolvedDeployment:
    return load_deployment(deployment_file)


@pytest.fixture
def budget(deployment_file: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["budget", *arguments, "--config", str(deployment_file)])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def spend(deployment: ResolvedDeployment, tokens: int = 900, model: str = "gpt-4.1", tenant: str = "acme") -> None:
    ledger = open_ledger(deployment)
    scopes = scope_limits(deployment, tenant, "ann", "s-1", "t-1", None)
    held = ledger.reserve(ReserveRequest("c-1", scopes, tokens, 0, 0, tenant, "ann", model), deadline=Deadline.after(5))
    ledger.settle(held.id, tokens, 0)
    ledger.close()


def test_show_lists_every_scope_and_the_tenants_that_used_nothing(budget: Any, deployment: ResolvedDeployment) -> None:
    """With limits, the tenant's own day, and cost; tenants stand together although today has two dates."""
    spend(deployment)

    code, out, _ = budget("show", "--json")

    record = json.loads(out)
    lines = {f"{b['scope']}:{b['key']}": b for b in record["balances"]}
    assert code == 0
    assert record["schema"] == "agentao-gov/budget/1"
    assert list(lines) == ["tenant:acme", "tenant:quiet", "user:acme/ann", "session:acme/s-1"]
    assert {name: (b["used"], b["limit"]) for name, b in lines.items()} == {
        "tenant:acme": (900, 8_000),
        "tenant:quiet": (0, 5_000),
        "user:acme/ann": (900, 2_000),
        "session:acme/s-1": (900, 1_000),
    }
    assert lines["tenant:acme"]["window"] > lines["tenant:quiet"]["window"]
    assert lines["tenant:acme"]["timezone"] == "Pacific/Kiritimati"
    assert lines["tenant:acme"]["cost_usd"] == pytest.approx(900 * 2e-6)


def test_an_unpriced_model_is_said_to_be_so(budget: Any, deployment: ResolvedDeployment) -> None:
    """Its tokens have no cost that is known, and that is not nothing."""
    spend(deployment, model="house-model")

    _, out, _ = budget("show")

    assert "900 tokens unpriced" in out


def test_looking_creates_no_ledger(budget: Any, deployment: ResolvedDeployment) -> None:
    """`show` before the first turn leaves no file behind; `verify` says that there is nothing."""
    code, _, _ = budget("show")
    verify_code, _, err = budget("verify")

    assert (code, verify_code) == (0, 9)
    assert "There is no ledger" in err
    assert not deployment.state_dir.exists()


def test_a_grant_counts_for_today(budget: Any, deployment: ResolvedDeployment) -> None:
    """And the next call under the same limit fits."""
    spend(deployment)

    code, _, _ = budget("grant", "session:acme/s-1", "5k")

    _, out, _ = budget("show", "--json")
    session = next(b for b in json.loads(out)["balances"] if b["scope"] == "session")
    assert code == 0
    assert (session["limit"], session["granted"]) == (6_000, 5_000)


def test_a_grant_to_a_tenant_that_is_not_listed_warns(budget: Any, deployment_file: Path) -> None:
    """With `[tenants.default]` anybody may be one; a typing error would change a budget that nobody uses."""
    deployment_file.write_text(deployment_file.read_text() + "[tenants.default]\n")

    _, _, err = budget("grant", "tenant:acmee", "5k")

    assert "did you mean 'acme'" in err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("grant", "acme", "5k"), 2),
        (("grant", "turn:t-1", "5k"), 2),
        (("grant", "session:acme", "5k"), 2),
        (("grant", "tenant:acme", "-5"), 2),
        (("grant", "tenant:acme", "many"), 2),
        (("grant", "tenant:acem", "5k"), 3),
        (("export", "--format", "xml"), 2),
        (("export", "--window", "yesterday"), 2),
        (("show", "--window", "2026-02-30"), 2),
        (("show", "--window", "20261122"), 2),
    ],
)
def test_what_makes_no_sense_is_refused(budget: Any, arguments: tuple[str, ...], code: int) -> None:
    """Wrong usage is 2, an unknown tenant 3."""
    assert budget(*arguments)[0] == code


def test_verify_passes_and_finds_a_change(budget: Any, deployment: ResolvedDeployment) -> None:
    """0 for a sound ledger, 9 with the balance named for a changed one."""
    spend(deployment)
    sound, out, _ = budget("verify")
    with closing(sqlite3.connect(deployment.state_dir / "ledger.db")) as sql:
        sql.execute("UPDATE balances SET used = 1 WHERE kind = 'tenant'")
        sql.commit()

    code, found, err = budget("verify")

    assert (sound, code) == (0, 9)
    assert "reproduce 4 balances" in out
    assert "tenant:acme" in found
    assert "does not reproduce" in err


def test_export_writes_balances_and_journal(budget: Any, deployment: ResolvedDeployment, tmp_path: Path) -> None:
    """CSV for a spreadsheet, JSON lines for everything else; the file is private."""
    spend(deployment)

    _, table, _ = budget("export")
    target = tmp_path / "journal.jsonl"
    budget("export", "--what", "journal", "--format", "jsonl", "--output", str(target))

    rows = list(csv.DictReader(io.StringIO(table)))
    entries = [json.loads(line) for line in target.read_text().splitlines()]
    assert {row["scope"]: row["used"] for row in rows} == {"tenant": "900", "user": "900", "session": "900"}
    assert [entry["number"] for entry in entries] == list(range(1, len(entries) + 1))
    settled = next(entry for entry in entries if entry["kind"] == "settle")
    assert (settled["kind"], settled["used"]) == ("settle", 900)
    assert settled["lines"][0].startswith("tenant:acme Pacific/Kiritimati ")
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_name_is_no_formula_in_a_spreadsheet(budget: Any, deployment: ResolvedDeployment) -> None:
    """A tenant, user or session that is called so would else be computed where the table is opened."""
    spend(deployment, tenant="=1+1")

    _, table, _ = budget("export")

    keys = [row["key"] for row in csv.DictReader(io.StringIO(table))]
    assert len(keys) == 3
    assert all(key.startswith("'=1+1") for key in keys)


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_ledger_that_cannot_be_looked_at_is_no_empty_one(budget: Any, deployment_file: Path, command: str) -> None:
    """Exit code 9, as for a file in another user's directory."""
    deployment_file.write_text(f'[budget]\npath = "{"x" * 300}.db"\n[state]\ndir = "{deployment_file.parent}"\n')

    code, _, err = budget(command)

    assert code == 9
    assert "cannot be used" in err


def test_a_ledger_in_memory_cannot_be_looked_at_from_outside(budget: Any, deployment_file: Path) -> None:
    """It is another process's memory; the error says what to do."""
    deployment_file.write_text('[budget]\nstore = "memory"\n')

    code, _, err = budget("show")

    assert code == 3
    assert "sqlite" in err
