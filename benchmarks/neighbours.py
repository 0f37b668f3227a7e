"""What an ordinary tenant's turns take while another tenant floods the service.

    python benchmarks/neighbours.py [--seconds 10] [--model-ms 250] [--only lists] [--soak MINUTES]

One `agentao-gov serve` of two tenants with keys, `acme` and `evil`. Four sessions of acme ask one turn after the other,
quiet first, then under each flood of evil, quiet again before each; the flood comes from a process of its own.
`--soak 10` measures for ten minutes instead, the floods one after the other without a pause, and the service's memory.
Writes neighbours.json (neighbours_soak.json) and the tables of neighbours.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import multiprocessing
import os
import platform
import resource
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from agentao_gov.clock import Deadline
from agentao_gov.governor.types import Conversation, SessionKey
from agentao_gov.pool.archive import SessionArchive, SessionHead
from agentao_gov.pool.types import SessionUsage
from agentao_gov.simulator import start_simulator
from agentao_gov.testrig.service import PrivateService

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import machine, refresh, table

HERE = Path(__file__).parent
KEYS = {"acme": "key-of-acme", "evil": "key-of-evil"}
SESSIONS_ON_DISK = 10_000
NEIGHBOURS = 4
TURN = "/v1/sessions/{}/turns"


# -- the floods, each in a process of its own --------------------------------------------------------------------------


def ask(port: int, method: str, path: str, body: bytes | None, key: str | None) -> int:
    """One request; the status, 0 where the connection was refused or broke."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def repeat(port: int, threads: int, method: str, path: str, body: bytes | None, key: str | None, told: Any) -> None:
    """Asks the same on so many threads until the process is ended; `told` counts the answers by status."""
    seen: Counter[int] = Counter()

    def work() -> None:
        while True:
            seen[ask(port, method, path, body, key)] += 1

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    while True:
        time.sleep(0.2)
        told.update(seen)


def hold(port: int, count: int, first: bytes, each_s: float, told: Any) -> None:
    """Opens so many connections that begin with `first` and go on with a byte now and then; opens broken ones anew."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    seen: Counter[int] = Counter()
    clients: list[socket.socket] = []
    while True:
        while len(clients) < count:
            with suppress(OSError):
                clients.append(socket.create_connection(("127.0.0.1", port), timeout=10))
                clients[-1].sendall(first)
        seen[0] = max(seen[0], len(clients))
        told.update(seen)
        time.sleep(each_s)
        alive = []
        for client in clients:
            try:
                client.sendall(b" ") if first else client.send(b"")
                client.setblocking(False)
                with suppress(BlockingIOError):
                    answer = client.recv(65536)
                    seen[int(answer.split(b" ")[1]) if answer else -1] += 1
                    client.close()
                    continue
                client.setblocking(True)
                alive.append(client)
            except OSError:
                client.close()
        clients = alive


def big_body() -> bytes:
    """4 MB of messages that are none."""
    return b'{"model":"qa","messages":[' + b",".join([b'{"role":"x"}'] * 300_000) + b"]}"


def slow_head() -> bytes:
    lines = (
        f"POST {TURN.format('x')} HTTP/1.1",
        "Host: a",
        "Content-Length: 1000",
        f"Authorization: Bearer {KEYS['evil']}",
    )
    return "\r\n".join([*lines, "", ""]).encode()


def hostile_turns(port: int, told: Any) -> None:
    """Turns whose tools search without end: patterns that backtrack and expand, on eight sessions."""
    calls = [
        {"name": "search_file_content", "args": {"pattern": "a{10000000}", "regex": True}},
        {"name": "search_file_content", "args": {"pattern": "(a+)+$", "regex": True}},
        {"name": "glob", "args": {"pattern": "**/*/**/*/**/*/**/*/**/*/**/*.zzz"}},
    ]
    bodies = [json.dumps({"message": f"Search.\n@sim {json.dumps({'tool': call})}"}).encode() for call in calls]
    seen: Counter[int] = Counter()

    def work(number: int) -> None:
        while True:
            seen[ask(port, "POST", TURN.format(f"h{number}"), bodies[number % len(bodies)], KEYS["evil"])] += 1

    for number in range(8):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    while True:
        time.sleep(0.2)
        told.update(seen)


#: Each flood: what it does, and how.
FLOODS: dict[str, tuple[str, Callable[[int, Any], None]]] = {
    "slow bodies": (
        "720 turns whose bodies come a byte every 4 s", lambda port, told: hold(port, 720, slow_head(), 4.0, told)
    ),
    "big bodies": (
        "4 MB of 300,000 messages, on 8 threads",
        lambda port, told: repeat(port, 8, "POST", "/v1/chat/completions", big_body(), KEYS["evil"], told),
    ),
    "lists": (
        f"lists of {SESSIONS_ON_DISK:,} sessions, on 60 threads",
        lambda port, told: repeat(port, 60, "GET", "/v1/sessions?limit=1000", None, KEYS["evil"], told),
    ),
    "metrics": (
        "scrapes without a key, on 30 threads", lambda port, told: repeat(port, 30, "GET", "/metrics", None, None, told)
    ),
    "cancels": (
        "cancels of a session that is not there, on 30 threads",
        lambda port, told: repeat(port, 30, "POST", "/v1/sessions/none/cancel", None, KEYS["evil"], told),
    ),
    "no key": (
        "turns without a key, on 30 threads",
        lambda port, told: repeat(port, 30, "POST", TURN.format("x"), b'{"message": "x"}', None, told),
    ),
    "hostile tools": ("turns whose tools search without end, on 8 sessions", hostile_turns),
    "idle connections": ("3,000 connections that send nothing", lambda port, told: hold(port, 3_000, b"", 5.0, told)),
}  # fmt: skip


def flood(name: str, port: int, told: Any) -> None:
    """The flood's process, which yields to the service as another machine would."""
    os.nice(15)
    FLOODS[name][1](port, told)


# -- the neighbour -----------------------------------------------------------------------------------------------------


def neighbour(port: int, seconds: float, model_ms: int) -> dict[str, Any]:
    """Turns of four sessions, one after the other each: their times, and the statuses they got."""
    message = "What is four times four?\n@sim " + json.dumps({"text": "Sixteen.", "first_token": f"{model_ms}ms"})
    body = json.dumps({"message": message}).encode()
    times: list[float] = []
    statuses: Counter[int] = Counter()
    end = time.perf_counter() + seconds

    def work(session: str) -> None:
        while (began := time.perf_counter()) < end:
            statuses[ask(port, "POST", TURN.format(session), body, KEYS["acme"])] += 1
            times.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=work, args=(f"n{n}",)) for n in range(NEIGHBOURS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ordered = sorted(times)
    return {
        "turns": len(ordered),
        "p50_ms": round(ordered[len(ordered) // 2], 1),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)], 1),
        "max_ms": round(ordered[-1], 1),
        "statuses": dict(statuses),
    }


def measure(port: int, name: str, seconds: float, model_ms: int) -> dict[str, Any]:
    """Quiet, then under one flood."""
    quiet = neighbour(port, seconds, model_ms)
    with multiprocessing.Manager() as manager:
        told = manager.dict()
        process = multiprocessing.get_context("spawn").Process(target=flood, args=(name, port, told), daemon=True)
        process.start()
        time.sleep(3)  # for the flood to stand
        flooded = neighbour(port, seconds, model_ms)
        answers = dict(told)
        process.kill()
        process.join()
    row = {"flood": name, "what": FLOODS[name][0], "quiet": quiet, "flooded": flooded, "evil_got": answers}
    row["factor"] = round(flooded["p95_ms"] / quiet["p95_ms"], 2)
    print(json.dumps(row), flush=True)
    return row


def soak(port: int, minutes: float, model_ms: int) -> dict[str, Any]:
    """The ordinary tenant's turns for so many minutes under one flood after the other, and the service's memory."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/status", headers={"Authorization": f"Bearer {KEYS['acme']}"})
    service = psutil.Process(json.loads(connection.getresponse().read())["instance"]["pid"])
    connection.close()
    each_s = minutes * 60 / (2 * len(FLOODS))
    rounds = []
    for name in [*FLOODS, *FLOODS]:
        with multiprocessing.Manager() as manager:
            told = manager.dict()
            process = multiprocessing.get_context("spawn").Process(target=flood, args=(name, port, told), daemon=True)
            process.start()
            flooded = neighbour(port, each_s, model_ms)
            answers = dict(told)
            process.kill()
            process.join()
        rss_mib = round(service.memory_info().rss / 2**20, 1)
        rounds.append({"flood": name, "neighbour": flooded, "evil_got": answers, "rss_mib": rss_mib})
        print(json.dumps(rounds[-1]), flush=True)
    return {"minutes": minutes, "rounds": rounds}


def write_soak(environment: dict[str, Any], measured: dict[str, Any], model_ms: int) -> None:
    """Writes the soak's file and table."""
    (HERE / "neighbours_soak.json").write_text(json.dumps({"environment": environment, **measured}, indent=1) + "\n")
    lines = [
        (
            number, row["flood"], row["neighbour"]["turns"], f"{row['neighbour']['p95_ms']:.0f} ms",
            sum(count for status, count in row["neighbour"]["statuses"].items() if status != 200), row["rss_mib"],
        )
        for number, row in enumerate(measured["rounds"], 1)
    ]  # fmt: skip
    head = ("phase", "flood", "turns of acme", "p95", "not answered", "service's memory at its end, MiB")
    told = f"{machine(environment)} {measured['minutes']:g} minutes, model's first token after {model_ms} ms."
    refresh(HERE / "neighbours.md", {"soak-machine": told, "soak": table(head, lines)})


def prepare(root: Path) -> None:
    """Evil's sessions on disk, as turns would have left them."""
    archive = SessionArchive(root / "state" / "sessions")
    for n in range(SESSIONS_ON_DISK):
        key = SessionKey("evil", f"s{n}")
        held = archive.hold(key, Deadline.after(5))
        assert held is not None
        now = time.time()
        head = SessionHead(key, 0, "default", "qa", "in-process", "simulated-model", now, now, SessionUsage())
        archive.save(held, head, Conversation(messages=[{"role": "user", "content": "x"}]))
        held.release()


def main() -> None:
    """Measures every flood in one run of one service."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--model-ms", type=int, default=250, help="until the model's first token")
    parser.add_argument("--only", choices=list(FLOODS), action="append")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(), "machine": platform.machine(),
        "python": platform.python_version(), "agentao": version("agentao"), "load": os.getloadavg()[0],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-neighbours-") as folder, start_simulator() as simulator:
        root = Path(folder) / "service"
        prepare(root)
        tenants = {name: {"api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()]} for name, key in KEYS.items()}
        flags = ("--model", "simulated-model", "--base-url", simulator.base_url)
        service = PrivateService(root, {"tenants": tenants}, keys=KEYS, flags=flags)
        with service:
            neighbour(service.port, 3, options.model_ms)
            if options.soak:
                write_soak(environment, soak(service.port, options.soak, options.model_ms), options.model_ms)
                return
            rows = [measure(service.port, n, options.seconds, options.model_ms) for n in options.only or FLOODS]
    if options.only:
        return
    document = {"environment": environment, "seconds": options.seconds, "model_ms": options.model_ms, "rows": rows}
    (HERE / "neighbours.json").write_text(json.dumps(document, indent=1) + "\n")
    lines = [
        (
            row["flood"], row["what"], f"{row['quiet']['p95_ms']:.0f} ms", f"{row['flooded']['p95_ms']:.0f} ms",
            row["factor"], f"{row['flooded']['max_ms']:.0f} ms",
            sum(count for status, count in row["flooded"]["statuses"].items() if status != 200),
        )
        for row in rows
    ]  # fmt: skip
    head = ("flood", "what evil does", "quiet p95", "p95 under it", "factor", "longest", "turns not answered")
    told = f"{machine(environment)} {options.seconds:g} s each, model's first token after {options.model_ms} ms."
    refresh(HERE / "neighbours.md", {"machine": told, "floods": table(head, lines)})


if __name__ == "__main__":
    main()
