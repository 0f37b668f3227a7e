"""The command refuses what cannot be run before anything starts, and its dry run starts nothing."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest

from agentao_gov.loadtest.document import schema
from agentao_gov.main import main

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    """Runs `agentao-gov loadtest ...` in this process; its exit code and standard output."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def run(*flags: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            main(["loadtest", *flags])
        return int(caught.value.code or 0), capsys.readouterr().out

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--threshold", "turn_p95"], 3),
        (["--config", "/nonexistent.toml"], 3),
        (["--mix", "nothing=1"], 3),
        (["--target", "http://127.0.0.1:9"], 3),
        (["--baseline", "/nonexistent.json"], 3),
        (["--target", "http://192.0.2.1:80"], 2),
        (["--victim", "acme", "--target", "http://127.0.0.1:9"], 2),
        (["--price", "cheap"], 2),
        (["--master", "--bind", "somewhere:else"], 2),
        (["--report", "/proc/nowhere"], 9),
        (["--mix", "qa=-1"], 2),
        (["--shape", "circle"], 2),
        (["--duration", "-3s"], 2),
        (["--rate", "nan"], 2),
        (["--shape", "capacity", "--rate", "3"], 2),
        (["--rate", "0"], 2),
        (["--rate", "-1"], 2),
        (["--rate", "inf"], 2),
        (["--rate", "1e9"], 2),
        (["--duration", "0"], 2),
        (["--duration", "soon"], 2),
        (["--duration", "99d"], 2),
        (["--users", "0"], 2),
        (["--users", "1000000"], 2),
        (["--think", "nan"], 2),
        (["--speed", "2"], 2),
        (["--victim-rate", "nan", "--victim", "acme"], 2),
        (["--price", "nan,1"], 2),
        (["--price", "-1,1"], 2),
        (["--mix", "qa=nan"], 2),
        (["--mix", "qa=inf"], 2),
        (["--worker-of", "127.0.0.1", "--rate", "3"], 2),
        (["--worker-of", "127.0.0.1:x"], 2),
        (["--bind", "0.0.0.0"], 2),
        (["--web-port", "8090"], 2),
        (["--force"], 2),
        (["--format", "junit"], 2),
        (["--tenant", "umbrella"], 3),
        (["--victim", "umbrella"], 3),
        (["--threshold", "turn_p95<2parsecs"], 3),
        (["--replay", "/nonexistent.jsonl"], 3),
        (["--replay", "/nonexistent.jsonl", "--users", "3"], 2),
        (["--shape", "capacity", "--write"], 3),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(flags: list[str], code: int, command: Command) -> None:
    """Bad configuration ends with 3, wrong usage with 2; with --json the error is one JSON object."""
    ended, out = command("--no-checklist", "--json", *flags)

    assert ended == code
    assert set(json.loads(out)["error"]) == {"code", "message", "hint"}


def test_a_port_of_the_web_ui_that_is_taken_is_refused_before_anything_starts(command: Command) -> None:
    """Not as the death of a load generator, after the checklist."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        code, out = command("--json", "--web", "--web-port", port)

    assert code == 3
    assert port in json.loads(out)["error"]["message"]


def test_a_dry_run_says_what_would_happen(command: Command) -> None:
    """Schedule, turns, tokens and, with prices, the cost."""
    flags = ("--dry-run", "--json", "--rate", "20", "--duration", "60s", "--shape", "ramp", "--price", "2,8")

    code, out = command(*flags)

    dry = json.loads(out)
    assert code == 0
    assert dry["turns"] == pytest.approx(20 * 60 * 0.6, rel=0.15)
    assert sum(dry["turns_by_profile"].values()) == dry["turns"]
    assert dry["cost"] == pytest.approx((2 * dry["prompt_tokens"] + 8 * dry["completion_tokens"]) / 1e6)
    assert [part["level_to"] for part in dry["schedule"]] == [20, 20]


def test_a_dry_run_is_the_same_for_the_same_seed(command: Command) -> None:
    """And another for another."""
    first, again, other = (command("--dry-run", "--json", "--seed", seed)[1] for seed in ("1", "1", "2"))

    assert first == again
    assert first != other


@pytest.mark.parametrize("shape", ["constant", "ramp", "steps", "spike", "soak", "capacity"])
def test_every_shape_has_a_dry_run(shape: str, command: Command) -> None:
    """Schedule, duration, expected turns and tokens, and the upper bounds."""
    code, out = command("--dry-run", "--json", "--duration", "60s", "--shape", shape)

    dry = json.loads(out)
    assert code == 0
    assert dry["turns"] > 0
    assert dry["tokens"] > 0
    assert dry["max_turns"] >= 2 * dry["turns"]
    assert dry["max_tokens"] >= 2 * dry["tokens"]
    assert 0 < dry["duration_s"] <= 60
    ends = [part["to_s"] for part in dry["schedule"]]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(dry["duration_s"])


def test_a_replay_has_a_dry_run(command: Command, tmp_path: Path) -> None:
    """Counted from the recording, at its speed, with its own mix of profiles."""
    report = {"schema": "agentao-gov/turn-report/1", "profile": "code", "session": "s", "iterations": 2}
    lines = [json.dumps({**report, "started_at": f"2026-11-22T08:00:{at:02d}Z"}) for at in (0, 10, 20, 40)]
    (tmp_path / "batch.jsonl").write_text("\n".join(lines))

    code, out = command("--dry-run", "--json", "--replay", "batch.jsonl", "--speed", "2", "--duration", "15s")

    dry = json.loads(out)
    assert code == 0
    assert dry["turns_by_profile"] == {"code": 3}
    assert dry["duration_s"] == 11.0
    assert dry["llm_calls"] == 6


def test_a_dry_run_says_what_cannot_be_decided(command: Command) -> None:
    """Before an hour is spent on it."""
    _, out = command("--dry-run", "--json", "--rate", "1", "--duration", "20s", "--threshold", "turn_p99<2s")

    (warning,) = json.loads(out)["warnings"]
    assert "p99 needs 299 turns" in warning


def test_a_run_that_cannot_begin_leaves_no_older_report(command: Command, tmp_path: Path) -> None:
    """CI must not read last week's pass where this week's configuration is wrong."""
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.json").write_text('{"verdict": "pass"}')

    code, _ = command("--json", "--report", "report", "--config", "/nonexistent.toml")

    report = json.loads((folder / "report.json").read_text())
    assert code == 3
    assert (report["verdict"], report["exit_code"]) == ("fail", 3)
    assert "nonexistent" in report["reasons"][0]
    jsonschema.validate(report, schema())
    assert "failure" in (folder / "junit.xml").read_text() or "error" in (folder / "junit.xml").read_text()
    assert "nonexistent" in (folder / "summary.md").read_text()
    assert "nonexistent" in (folder / "report.html").read_text()
