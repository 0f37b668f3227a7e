"""Turns a second through HTTP: `agentao-gov serve` beside a bare agentao behind the same route, in one run.

    python benchmarks/service.py [--seconds 8] [--sessions 1 8 64] [--messages 0 200]

Both services run in a process of their own, on the same simulated model (a third process, no latency), asked by the
same client (a fourth). Subjects take turns for each setting; then 64 turns of a second each run side by side in the
governed service. Writes service.json and the tables of service.md beside this file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tables import machine, refresh, table

HERE = Path(__file__).parent
MESSAGE = 'What is four times four?\n@sim {"text": "Sixteen."}'
WARM_TURNS = 2


def history(count: int) -> list[dict[str, Any]]:
    """A conversation of so many messages of about 200 characters."""
    roles = ("user", "assistant")
    return [
        {"role": roles[n % 2], "content": f"Message {n}. " + "Limits make agents predictable. " * 6}
        for n in range(count)
    ]


# -- the bare service --------------------------------------------------------------------------------------------------


def bare_main(port: int, base_url: str, messages: int) -> None:
    """agentao as its guide shows it (`arun`), one agent a session, behind the same Starlette route."""
    import asyncio

    import uvicorn
    from agentao import Agentao
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    root = Path(tempfile.mkdtemp(prefix="bench-bare-"))
    agents: dict[str, Any] = {}
    locks: dict[str, asyncio.Lock] = {}

    async def turn(request: Request) -> JSONResponse:
        session = request.path_params["session"]
        body = await request.json()
        async with locks.setdefault(session, asyncio.Lock()):
            if session not in agents:
                folder = root / session
                folder.mkdir()
                agents[session] = agent = Agentao(
                    api_key="k", base_url=base_url, model="simulated-model", working_directory=folder, max_tokens=4096,
                    permission_mode="read-only",
                    enabled_tools=("read_file", "glob", "search_file_content", "list_directory"),
                )  # fmt: skip
                agent.messages = history(messages)
            answer = await agents[session].arun(body["message"])
        return JSONResponse({"answer": answer})

    async def ready(_: Request) -> JSONResponse:
        return JSONResponse({})

    app = Starlette(
        routes=[Route("/v1/sessions/{session}/turns", turn, methods=["POST"]), Route("/readyz", ready, methods=["GET"])]
    )
    uvicorn.run(
        app, host="127.0.0.1", port=port, log_level="critical", access_log=False, http="h11", timeout_keep_alive=75
    )


# -- the governed service ----------------------------------------------------------------------------------------------


def prepare(root: Path, sessions: int, messages: int) -> None:
    """Writes the deployment, and each session's conversation as an earlier run would have left it."""
    (root / "agentao-gov.toml").write_text(f'[state]\ndir = "{root / "state"}"\n[pool]\nqueue_timeout = "60s"\n')
    if not messages:
        return
    archive = SessionArchive(root / "state" / "sessions")
    for n in range(sessions):
        key = SessionKey("default", f"s{n}")
        now = time.time()
        held = archive.hold(key, Deadline.after(5))
        assert held is not None
        head = SessionHead(key, 0, "default", "qa", "in-process", "simulated-model", now, now, SessionUsage())
        archive.save(held, head, Conversation(messages=history(messages)))
        held.release()


def start(subject: str, root: Path, base_url: str, sessions: int, messages: int, port: int) -> subprocess.Popen[bytes]:
    if subject == "governed":
        prepare(root, sessions, messages)
        command = [
            str(Path(sys.executable).with_name("agentao-gov")), "serve", "--no-warden", "--port", str(port),
            "--config", str(root / "agentao-gov.toml"), "--model", "simulated-model", "--base-url", base_url,
        ]  # fmt: skip
    else:
        command = [sys.executable, __file__, "--bare", str(port), base_url, str(messages)]
    environment = {**os.environ, "HOME": str(root)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if ask(port, "/readyz", None)[0] == 200:
                return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise SystemExit(f"{subject} did not start")


# -- the client --------------------------------------------------------------------------------------------------------


def ask(port: int, path: str, body: Any, kept: http.client.HTTPConnection | None = None) -> tuple[int, bytes]:
    connection = kept or http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = None if body is None else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, raw, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.status, response.read()
    if kept is None:
        connection.close()
    return answer


def drive(port: int, sessions: int, seconds: float) -> tuple[int, float, list[float]]:
    """Turns answered, the time they took, and each one's latency; every session asks as soon as it was answered."""
    latencies: list[float] = []
    lock = threading.Lock()
    go = threading.Barrier(sessions + 1)
    end_at = [0.0]

    def one(n: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        path, body, mine = f"/v1/sessions/s{n}/turns", {"message": MESSAGE}, []
        for _ in range(WARM_TURNS):
            status, answer = ask(port, path, body, connection)
            assert status == 200, answer
        go.wait()
        while time.perf_counter() < end_at[0]:
            began = time.perf_counter()
            status, answer = ask(port, path, body, connection)
            assert status == 200, answer
            mine.append(time.perf_counter() - began)
        connection.close()
        with lock:
            latencies.extend(mine)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(sessions)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    end_at[0] = began + 3600
    go.wait()
    began = time.perf_counter()
    end_at[0] = began + seconds
    for thread in threads:
        thread.join()
    return len(latencies), time.perf_counter() - began, latencies


def cpu_s(process: psutil.Process) -> float:
    """User and system time of a process, in seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


def side_by_side(base_url: str, port: int, turns: int = 64) -> dict[str, Any]:
    """How long so many turns of one second each take together, and the CPU the service spends on them."""
    slow = 'What is four times four?\n@sim {"text": "Sixteen.", "first_token": "1s"}'
    with tempfile.TemporaryDirectory(prefix="bench-service-") as folder:
        process = start("governed", Path(folder), base_url, turns, 0, port)
        try:
            served = psutil.Process(process.pid)
            drive(port, turns, 0.1)
            before = cpu_s(served)
            with concurrent.futures.ThreadPoolExecutor(turns) as pool:
                list(pool.map(lambda n: n, range(turns)))
                began = time.perf_counter()
                paths = [f"/v1/sessions/s{n}/turns" for n in range(turns)]
                answers = list(pool.map(lambda path: ask(port, path, {"message": slow}), paths))
                took_s = time.perf_counter() - began
            assert {status for status, _ in answers} == {200}
            return {"turns": turns, "wall_s": round(took_s, 2), "service_cpu_s": round(cpu_s(served) - before, 2)}
        finally:
            process.terminate()
            process.wait(60)


def measure(subject: str, base_url: str, sessions: int, messages: int, seconds: float, port: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-service-") as folder:
        process = start(subject, Path(folder), base_url, sessions, messages, port)
        try:
            served = psutil.Process(process.pid)
            drive(port, sessions, 0.5)
            before = cpu_s(served)
            turns, took_s, latencies = drive(port, sessions, seconds)
            # The warm-up turns of this drive are in it too.
            cpu_ms = (cpu_s(served) - before) / (turns + WARM_TURNS * sessions) * 1000
            rss = served.memory_info().rss
        finally:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    ordered = sorted(latencies)
    return {
        "subject": subject,
        "sessions": sessions,
        "messages": messages,
        "turns_per_s": round(turns / took_s, 1),
        "p50_ms": round(statistics.median(ordered) * 1000, 1),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 1),
        "cpu_ms": round(cpu_ms, 2),
        "rss_mib": round(rss / 2**20, 1),
        "turns": turns,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--messages", type=int, nargs="*", default=[0, 200])
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_main(int(arguments.bare[0]), arguments.bare[1], int(arguments.bare[2]))
        return
    rows = []
    load = os.getloadavg()[0]
    with start_simulator() as simulator:
        port = 18_400
        for messages in arguments.messages:
            for sessions in arguments.sessions:
                for subject in ("bare", "governed"):
                    port += 1
                    row = measure(subject, simulator.base_url, sessions, messages, arguments.seconds, port)
                    rows.append(row)
                    print(row, flush=True)
        together = side_by_side(simulator.base_url, port + 1)
        print(together, flush=True)
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
        "agentao": version("agentao"),
        "openai": version("openai"),
        "seconds": arguments.seconds,
    }
    result = {"environment": environment, "rows": rows, "side_by_side": together}
    (HERE / "service.json").write_text(json.dumps(result, indent=1) + "\n")
    refresh(HERE / "service.md", sections(result))


def sections(result: dict[str, Any]) -> dict[str, str]:
    """The tables of `service.md`."""
    lines = []
    pairs = list(zip(result["rows"][::2], result["rows"][1::2], strict=True))
    for bare, governed in pairs:
        factor = governed["turns_per_s"] / bare["turns_per_s"]
        both = [f"{subject[name]:.1f} ms" for name in ("p50_ms", "cpu_ms") for subject in (bare, governed)]
        rates = (bare["turns_per_s"], governed["turns_per_s"], f"{factor:.1f}")
        lines.append([bare["messages"], bare["sessions"], *rates, *both])
    heads = ("messages", "sessions", "bare turns/s", "governed turns/s", "factor", "bare p50", "governed p50",
             "bare CPU a turn", "governed CPU a turn")  # fmt: skip
    together = result["side_by_side"]
    return {
        "machine": f"{machine(result['environment'])} {result['environment']['seconds']:g} s a setting.",
        "turns": table(heads, lines),
        "together": f"{together['turns']} turns of one second each, asked at once, were all answered after "
        f"{together['wall_s']} s; the service spent {together['service_cpu_s']} s of CPU on them.",
    }


if __name__ == "__main__":
    main()
