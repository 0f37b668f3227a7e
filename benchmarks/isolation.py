"""What a session in a process of its own costs, beside the same session in this process and agentao's own ACPManager.

    python benchmarks/isolation.py

Writes `isolation.json` and the tables of `isolation.md`, which also tells the method. The model is the simulated one in
its own process, answering at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from agentao_gov.clock import Deadline
from agentao_gov.governor import Outcome
from agentao_gov.process.oslimits import OsLimits
from agentao_gov.simulator import start_simulator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.isolation_bench import Bench, ask, cpu_s, middle, pss_mib, say, timed_ms  # noqa: E402
from benchmarks.isolation_tables import sections  # noqa: E402
from benchmarks.tables import refresh  # noqa: E402

REGEX = {"name": "search_file_content", "args": {"pattern": "(a|aa)+$", "regex": True}}
EAT = 'b = []\nwhile True: b.append(b"x" * (1 << 20))'
#: Each subject of the neighbours' comparison is measured in so many windows, all subjects in turn.
NEIGHBOUR_WINDOWS = 5
FORK = "import os, time\nfor _ in range(2000):\n  if os.fork() == 0: time.sleep(30)"


# -- start and stop ---------------------------------------------------------------------------------------------------


def measure_starts(bench: Bench, rounds: int) -> dict[str, Any]:
    """Milliseconds to the first answer, and to the end of a session."""
    found: dict[str, Any] = {}

    def first_answer(factory: Any, hosts: list[Any]) -> float:
        def work() -> None:
            hosts.append(bench.open(factory))
            assert ask(hosts[-1]).outcome is Outcome.ANSWERED

        return timed_ms(work)

    def run(name: str, factory: Any, count: int, before: Callable[[], None] = lambda: None) -> None:
        hosts: list[Any] = []
        times = []
        for _ in range(count):
            before()
            times.append(first_answer(factory, hosts))
        found[f"start {name}"] = middle(times)
        half = len(hosts) // 2 or 1
        found[f"stop {name}, graceful"] = middle(
            [timed_ms(lambda h=h: h.close(Deadline.after(10))) for h in hosts[:half]]
        )
        found[f"stop {name}, forced"] = middle([timed_ms(h.kill) for h in hosts[half:]] or [0.0])

    run("in-process", bench.governor, rounds)
    cold = bench.factory(zygote=False)
    run("cold", cold, max(3, rounds // 4))
    cold.shutdown(Deadline.after(10))
    forked = bench.factory(ready=0)
    found["start of the zygote, once"] = middle([timed_ms(lambda: forked.prepare(Deadline.after(60)))])
    run("forked", forked, rounds)
    forked.shutdown(Deadline.after(10))
    warm = bench.factory(ready=2)
    warm.warm_up()

    def stocked() -> None:
        while warm.ready_count() < 2:
            time.sleep(0.01)

    run("ready", warm, rounds, stocked)
    warm.shutdown(Deadline.after(10))
    return found


# -- memory -----------------------------------------------------------------------------------------------------------


def measure_memory(bench: Bench, counts: list[int]) -> dict[str, Any]:
    """Proportional memory of everything that hosts N sessions, each after one turn."""
    found: dict[str, Any] = {}
    factory = bench.factory(ready=0)
    factory.prepare(Deadline.after(60))
    hosts: list[Any] = []
    for count in counts:
        while len(hosts) < count:
            hosts.append(bench.open(factory))
            ask(hosts[-1])
        roots = [pid for host in hosts for pid in host.process_ids()] + list(factory.process_ids())
        found[str(count)] = round(pss_mib(roots), 1)
    for host in hosts:
        host.kill()
    factory.shutdown(Deadline.after(10))
    first, last = counts[0], counts[-1]
    if last > first:
        found["each beyond the first"] = round((found[str(last)] - found[str(first)]) / (last - first), 2)
    return found


# -- throughput -------------------------------------------------------------------------------------------------------


def turns_per_s(hosts: list[Any], seconds: float) -> dict[str, float]:
    """Each host's turns one after another, all hosts at once; and what a turn costs here and in its own process."""
    until = time.monotonic() + seconds
    done = [0] * len(hosts)
    roots = [pid for host in hosts for pid in host.process_ids()]
    here, there = time.process_time(), cpu_s(roots)

    def work(index: int) -> None:
        while time.monotonic() < until:
            assert ask(hosts[index], say(text="ok")).outcome is Outcome.ANSWERED
            done[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "turns/s": round(sum(done) / seconds, 1),
        "CPU ms a turn, service": round((time.process_time() - here) / sum(done) * 1000, 2),
        "CPU ms a turn, session": round((cpu_s(roots) - there) / sum(done) * 1000, 2),
    }


def measure_throughput(bench: Bench, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    factory = bench.factory(ready=0)
    factory.prepare(Deadline.after(60))
    for count in (1, 2, 4):
        for name, maker in (("in-process", bench.governor), ("subprocess", factory)):
            hosts = [bench.open(maker) for _ in range(count)]
            for host in hosts:
                ask(host)
            found[f"{name}, {count} sessions"] = turns_per_s(hosts, seconds)
            for host in hosts:
                host.kill()
    factory.shutdown(Deadline.after(10))
    return found


# -- neighbours -------------------------------------------------------------------------------------------------------


def measure_neighbours(bench: Bench, seconds: float) -> dict[str, Any]:
    """p95 of a neighbour's turns, alone and beside a session that misbehaves all the time."""
    factory = bench.factory(ready=2, limits=OsLimits(memory_bytes=256 << 20, processes=64))
    factory.prepare(Deadline.after(60))
    shell = {"permission_mode": "full-access", "allow": ["run_shell_command", "search_file_content"]}
    limits = {"turn_timeout": 2, "tool_timeout": 2, "cancel_grace": 1}
    neighbour = bench.open(factory)
    ask(neighbour)

    def program(text: str) -> str:
        command = f"{sys.executable} -I -S -c '{text}'"
        return say(text="after", tool={"name": "run_shell_command", "args": {"command": command}})

    troubles = {
        "quiet": None,
        "eats memory": program(EAT),
        "forks without end": program(FORK),
        "regular expression that never returns": say(text="after", tool=REGEX),
    }
    times: dict[str, list[float]] = {name: [] for name in troubles}

    def window(name: str) -> None:
        over = threading.Event()

        def misbehave(message: str) -> None:
            hog = bench.open(factory, tools=shell, limits=limits)
            (hog.spec.workdir / "bait.txt").write_text("a" * 40 + "b\n")
            while not over.is_set():
                ask(hog, message, deadline_s=2)
            hog.kill()

        threads = [threading.Thread(target=misbehave, args=(m,)) for m in (troubles[name],) if m is not None]
        for thread in threads:
            thread.start()
        until = time.monotonic() + seconds / NEIGHBOUR_WINDOWS
        while time.monotonic() < until:
            times[name].append(timed_ms(lambda: ask(neighbour, say(text="ok", first_token="50ms"))))
            neighbour_conversation_stays_short(neighbour)
        over.set()
        for thread in threads:
            thread.join()

    # In turns, so that other work on the machine falls on all alike.
    for _ in range(NEIGHBOUR_WINDOWS):
        for name in troubles:
            window(name)
    found = {name: middle(values) for name, values in times.items()}
    neighbour.kill()
    factory.shutdown(Deadline.after(10))
    for name, value in found.items():
        value["p95 against quiet"] = round(value["p95"] / found["quiet"]["p95"], 2) if name != "quiet" else 1.0
    return found


def neighbour_conversation_stays_short(host: Any) -> None:
    """A history of hundreds of turns would be what is measured: after 20 the session starts anew."""
    if len(host.snapshot().messages) > 40:
        live = host._live
        host._conversation = type(host.snapshot())()
        if live is not None:
            live.process.kill()
            live.gone.wait(5)


# -- agentao's own --------------------------------------------------------------------------------------------------


def measure_acp(bench: Bench, counts: list[int], rounds: int, seconds: float) -> dict[str, Any]:
    """The same through agentao's ACPManager and its stock server: one process per named server."""
    from agentao.acp_client import AcpClientConfig, ACPManager, AcpServerConfig

    found: dict[str, Any] = {}
    total = max([*counts, rounds])
    home = bench.root / "acp-home"
    home.mkdir()
    servers = {}
    for index in range(total):
        cwd = bench.root / f"acp{index}"
        cwd.mkdir()
        env = {
            "LLM_PROVIDER": "OPENAI", "OPENAI_API_KEY": "sk-bench", "OPENAI_BASE_URL": bench.base_url,
            "OPENAI_MODEL": "simulated", "HOME": str(home), "PATH": os.environ["PATH"],
        }  # fmt: skip
        servers[f"w{index}"] = AcpServerConfig(
            command=sys.executable, args=["-m", "agentao.acp"], env=env, cwd=str(cwd), auto_start=False,
            non_interactive_policy="reject_all", startup_timeout_ms=60_000,
        )  # fmt: skip
    manager = ACPManager(AcpClientConfig(servers=servers))
    before = {p.pid for p in psutil.Process().children(recursive=True)}

    def first_answer(name: str) -> None:
        manager.connect_server(name)
        manager.send_prompt(name, "hello", interactive=False, timeout=60)

    def roots() -> list[int]:
        return [p.pid for p in psutil.Process().children(recursive=True) if p.pid not in before]

    times = []
    memory: dict[str, Any] = {}
    for index in range(total):
        times.append(timed_ms(lambda index=index: first_answer(f"w{index}")))
        if index + 1 in counts:
            memory[str(index + 1)] = round(pss_mib(roots()), 1)
    first, last = counts[0], max(count for count in counts if count <= total)
    if last > first:
        memory["each beyond the first"] = round((memory[str(last)] - memory[str(first)]) / (last - first), 2)
    found["start"] = middle(times)
    found["pss MiB"] = memory
    for count in (1, 2, 4):
        if count > total:
            break
        until = time.monotonic() + seconds
        done = [0] * count

        def work(index: int, until: float = until, done: list[int] = done) -> None:
            while time.monotonic() < until:
                manager.send_prompt(f"w{index}", say(text="ok"), interactive=False, timeout=60)
                done[index] += 1

        threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found[f"turns/s, {count} sessions"] = round(sum(done) / seconds, 1)
    found["stop, each"] = round(timed_ms(manager.stop_all) / total, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", default="1,10,50")
    parser.add_argument("--acp-sessions", default="1,10")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--dry", action="store_true", help="print only; leave the recorded results as they are")
    options = parser.parse_args()
    counts = [int(word) for word in options.sessions.split(",")]
    acp_counts = [int(word) for word in options.acp_sessions.split(",")]
    environment = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(),
        "machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version(),
        "agentao": version("agentao"), "load": os.getloadavg()[0],
    }  # fmt: skip
    with start_simulator() as simulator, tempfile.TemporaryDirectory() as directory:
        bench = Bench(simulator.base_url, Path(directory))
        results: dict[str, Any] = {
            "environment": environment,
            "milliseconds": measure_starts(bench, options.rounds),
            "pss_mib": measure_memory(bench, counts),
            "turns": measure_throughput(bench, options.seconds),
            "neighbours_ms": measure_neighbours(bench, options.seconds * 3),
            "acp_manager": measure_acp(bench, acp_counts, min(options.rounds, 5), options.seconds),
        }
    environment["load_after"] = os.getloadavg()[0]
    text = json.dumps(results, indent=2)
    print(text)
    if not options.dry:
        (HERE / "isolation.json").write_text(text + "\n")
        refresh(HERE / "isolation.md", sections(results))


if __name__ == "__main__":
    main()
