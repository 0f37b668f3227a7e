"""Whatever is wrong with the store: the real command ends with 9, and the model is not asked once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agentao_gov.simulator import Simulator
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

#: A turn that goes on asking, whose first call waits at the gate.
ENDLESS = {
    "hold": "gate",
    "tool": {"name": "glob", "args": {"pattern": "*{round}"}, "rounds": "endless", "vary": True},
}

Damage = Callable[[Path], None]


class Deployment:
    """A deployment file, and the command run on it in a process of its own."""

    def __init__(self, directory: Path, simulator: Simulator, store: str = "sqlite", policy: str = "refuse") -> None:
        self.simulator = simulator
        self.state = directory / "state"
        self.ledger = self.state / "ledger.db"
        self.file = directory / "agentao-gov.toml"
        self.file.write_text(
            f'[budget]\nstore = "{store}"\non_store_failure = "{policy}"\nuser_daily_tokens = 1_000_000\n'
            f'[state]\ndir = "{self.state}"\n'
        )
        self._directory = directory

    def start(self, prompt: str, *, file_bytes_max: int | None = None) -> subprocess.Popen[str]:
        def limit() -> None:
            if file_bytes_max is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes_max, file_bytes_max))

        command = [sys.executable, "-m", "agentao_gov.main", "run", prompt, "--json", "--config", str(self.file)]
        command += ["--model", "sim", "--base-url", self.simulator.base_url, "--workdir", str(self._directory)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
            cwd=self._directory,
            env={name: value for name, value in os.environ.items() if name != "AGENTAO_GOV_STATE"},
        )

    def run(self, prompt: str = "hello", *, file_bytes_max: int | None = None) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        process = self.start(prompt, file_bytes_max=file_bytes_max)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def calls(self) -> int:
        return self.simulator.truth(requests=False).total.calls


def flip(path: Path) -> None:
    """A hundred bytes all over the file, the first page's header among them."""
    content = bytearray(path.read_bytes())
    for offset in (20, *range(100, len(content), max(1, len(content) // 100))):
        content[offset] ^= 0xFF
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_file(path: Path) -> None:
    path.write_bytes(b"something else entirely" * 1_000)


def remove(path: Path) -> None:
    path.unlink()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [flip, cut_off, other_file, remove, a_directory]


def refused(code: int, out: str, err: str) -> str:
    """Asserts the typed refusal; returns what the operator reads."""
    assert code == 9, (code, out, err)
    record = json.loads(out)
    assert record.get("outcome") == "store_unavailable" or record["error"]["code"] == "ledger_unavailable", record
    assert "Traceback" not in err
    assert ".." not in (out + err).replace("...", "")
    return out + err


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_refuses_every_turn(tmp_path: Path, simulator: Simulator, damage: Damage) -> None:
    """At the start of the next command, with the path and what to do."""
    deployment = Deployment(tmp_path, simulator)
    assert deployment.run()[0] == 0
    before = deployment.calls()
    damage(deployment.ledger)

    text = refused(*deployment.run())

    assert "ledger.db" in text
    assert deployment.calls() == before


def test_an_older_copy_refuses(tmp_path: Path, simulator: Simulator) -> None:
    """Yesterday's backup knows nothing of today's spending."""
    deployment = Deployment(tmp_path, simulator)
    deployment.run()
    shutil.copy(deployment.ledger, tmp_path / "backup.db")
    deployment.run()
    before = deployment.calls()
    shutil.copy(tmp_path / "backup.db", deployment.ledger)

    assert "older copy" in refused(*deployment.run())
    assert deployment.calls() == before


def test_a_locked_file_refuses(tmp_path: Path, simulator: Simulator) -> None:
    """Somebody's `sqlite3` shell with an open transaction."""
    deployment = Deployment(tmp_path, simulator)
    deployment.run()
    before = deployment.calls()
    with closing(sqlite3.connect(deployment.ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        text = refused(*deployment.run())

    assert "locked" in text
    assert deployment.calls() == before
    assert deployment.run()[0] == 0


def test_a_disk_without_room_refuses(tmp_path: Path, simulator: Simulator) -> None:
    """No file may grow: what cannot be recorded is not sent."""
    deployment = Deployment(tmp_path, simulator)
    deployment.run()
    before = deployment.calls()

    refused(*deployment.run(file_bytes_max=4_096))

    assert deployment.calls() == before
    assert deployment.run()[0] == 0


def test_a_ledger_replaced_in_mid_turn_stops_the_turn(tmp_path: Path, simulator: Simulator) -> None:
    """The call in flight was recorded; the next one is not made."""
    deployment = Deployment(tmp_path, simulator)
    deployment.run()
    before = deployment.calls()
    process = deployment.start(f"go\n@sim {json.dumps(ENDLESS)}")
    simulator.wait_for(held=1, timeout_s=40)
    deployment.ledger.rename(tmp_path / "moved.db")

    simulator.release("gate")
    out, err = process.communicate(timeout=60)

    refused(process.returncode, out, err)
    assert deployment.calls() == before + 1


def test_where_the_operator_allows_it_turns_go_on_and_each_use_is_logged(tmp_path: Path, simulator: Simulator) -> None:
    """Also when the file cannot be opened at all."""
    deployment = Deployment(tmp_path, simulator, policy="allow")
    deployment.run()
    before = deployment.calls()
    other_file(deployment.ledger)

    code, out, err = deployment.run()

    assert (code, json.loads(out)["outcome"]) == (0, "answered")
    assert deployment.calls() == before + 1
    assert "let through unrecorded" in err


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────


REDIS_DAMAGES: dict[str, Callable[[RedisServer], object]] = {
    "gone": RedisServer.kill,
    "hanging": RedisServer.pause,
    "full": lambda server: server.ask("CONFIG", "SET", "maxmemory", "1"),
    "emptied": lambda server: server.ask("FLUSHALL"),
    "restarted without its data": RedisServer.lose_everything,
    "evicting": lambda server: server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
    "a replica": lambda server: server.ask("REPLICAOF", "127.0.0.1", "1"),
}


@pytest.mark.redis
@pytest.mark.parametrize("damage", REDIS_DAMAGES)
def test_a_damaged_server_refuses_every_turn(
    tmp_path: Path, simulator: Simulator, redis_server: RedisServer, damage: str
) -> None:
    """Lost, full, empty, or one that would forget: not one call."""
    deployment = Deployment(tmp_path, simulator, store=redis_server.url)
    assert deployment.run()[0] == 0
    before = deployment.calls()
    REDIS_DAMAGES[damage](redis_server)

    refused(*deployment.run())

    assert deployment.calls() == before


@pytest.mark.redis
def test_a_server_lost_in_mid_turn_stops_the_turn(
    tmp_path: Path, simulator: Simulator, redis_server: RedisServer
) -> None:
    """The call in flight was recorded; the next one is not made."""
    deployment = Deployment(tmp_path, simulator, store=redis_server.url)
    deployment.run()
    before = deployment.calls()
    process = deployment.start(f"go\n@sim {json.dumps(ENDLESS)}")
    simulator.wait_for(held=1, timeout_s=40)
    redis_server.kill()

    simulator.release("gate")
    out, err = process.communicate(timeout=60)

    refused(process.returncode, out, err)
    assert deployment.calls() == before + 1
