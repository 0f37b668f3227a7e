"""A quiet tenant is measured alone, then beside a loud one, against a real service with both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.loadtest.own import start_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

TENANTS = "".join(
    f'[tenants.{name}]\napi_key_sha256 = ["{digit * 64}"]\n' for name, digit in (("quiet", "a"), ("loud", "b"))
)


def test_a_victim_is_measured_alone_and_beside_the_load(tmp_path: Path) -> None:
    """p95 noisy over p95 alone, from enough turns of both; a threshold on it decides the run."""
    run = start_run(
        tmp_path, "--victim", "quiet", "--victim-rate", "5", "--rate", "8", "--duration", "20s", "--turns", "2",
        "--first-token", "300ms", "--threshold", "isolation_p95<0.001", "--report", "report", more=TENANTS,
    )  # fmt: skip

    code, report, error = run.end()

    isolation = report["isolation"]
    assert code == 1, (report["reasons"], error)
    assert isolation["victim"] == "quiet"
    for part in ("alone", "beside_load"):
        turns = isolation[part]["turns"]
        assert turns["answered"] >= 59
        assert turns["attempted"] == sum(
            turns[k] for k in ("answered", "failed", "timed_out", "cancelled", "unfinished")
        )
    alone, beside = (isolation[part]["turn_ms"]["p95"] for part in ("alone", "beside_load"))
    assert isolation["ratio_p95"] == pytest.approx(beside / alone, rel=0.02)
    assert set(report["by_tenant"]) == {"quiet", "loud"}
    # The loud one plays at its own rate beside, and not at all before.
    assert report["by_tenant"]["loud"]["turns"]["attempted"] > 100
    assert [part["status"] for part in report["thresholds"]] == ["fail"]
    page, text = ((tmp_path / "report" / name).read_text() for name in ("report.html", "summary.md"))
    assert "Isolation of quiet" in page
    assert "beside the load" in text


def test_a_ratio_of_too_few_turns_is_inconclusive(tmp_path: Path) -> None:
    """15 turns certify no p95, so nothing is said of the neighbour."""
    run = start_run(
        tmp_path, "--victim", "quiet", "--victim-rate", "1", "--rate", "4", "--duration", "8s", "--turns", "1",
        "--threshold", "isolation_p95<100", more=TENANTS,
    )  # fmt: skip

    code, report, error = run.end()

    assert code == 11, (report.get("reasons"), error)
    assert report["isolation"]["ratio_p95"] is None
