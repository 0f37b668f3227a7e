"""The command refuses what cannot be run before anything starts, and its dry run starts nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
        (["--mix", "qa=-1"], 2),
        (["--shape", "circle"], 2),
        (["--duration", "-3s"], 2),
        (["--rate", "nan"], 2),
        (["--shape", "capacity", "--rate", "3"], 2),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(flags: list[str], code: int, command: Command) -> None:
    """Bad configuration ends with 3, wrong usage with 2; with --json the error is one JSON object."""
    ended, out = command("--no-checklist", "--json", *flags)

    assert ended == code
    assert set(json.loads(out)["error"]) == {"code", "message", "hint"}


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
