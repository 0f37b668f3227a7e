"""What governing a turn costs: our turn against a bare `Agentao.chat`, paired, on the same simulated model, in one run.

    python benchmarks/turn_overhead.py [--rounds 60] [--sessions 100 500] [--quick]

Variants take turns (A B C A B C ...), so that drift of the machine meets all of them. The model runs in its own process
with zero latency; CPU is this process's user + system time. Memory is measured in a child process a variant, USS after
one turn a session and a collection. Start-up is the installed program, run as a user runs it. Writes
turn_overhead.json beside this file, and the tables and the reading of turn_overhead.md between their markers.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import psutil
from agentao import Agentao
from agentao.transport import SdkTransport
from pydantic import SecretStr

from agentao_gov.budget import MemoryStore, StoreSettings, TokenLedger
from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice, Profile, ResolvedProfile
from agentao_gov.config.profile import ApiFormat
from agentao_gov.governor import Conversation, Governor, SessionKey, SessionSpec, TurnRequest
from agentao_gov.simulator import start_simulator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.tables import machine, refresh, table  # noqa: E402

ANSWER = {"text": "Forty-two."}
TOOL_LOOP = {"text": "Done.", "tool": {"name": "glob", "args": {"pattern": "*{round}"}, "vary": True, "rounds": 3}}
TOOLS = ["read_file", "glob", "search_file_content", "list_directory"]
VARIANTS = ("bare", "bare_without_log", "governed")


def history(length: int) -> list[dict[str, Any]]:
    """A conversation of so many messages of about 200 characters."""
    roles = ("user", "assistant")
    return [
        {"role": roles[n % 2], "content": f"Message {n}. " + "Limits make agents predictable. " * 6}
        for n in range(length)
    ]


class Bare:
    """agentao as its guide shows it."""

    def __init__(
        self, base_url: str, workdir: Path, *, log: bool, api_format: ApiFormat = "openai-completions"
    ) -> None:
        quiet = logging.getLogger("bench.quiet")
        quiet.setLevel(logging.CRITICAL)
        self.agent = Agentao(
            api_key="sk-bench-0123456789",
            base_url=base_url,
            model="simulated",
            max_tokens=4_096,
            working_directory=workdir,
            permission_mode="read-only",
            enabled_tools=TOOLS,
            transport=SdkTransport(confirm_tool=lambda *_: False),
            api_format=api_format,
            **({} if log else {"logger": quiet}),
        )

    def ask(self, message: str) -> str:
        return str(self.agent.chat(message, 25))

    def recall(self, messages: list[dict[str, Any]]) -> None:
        self.agent.messages = list(messages)

    def close(self) -> None:
        self.agent.close()


class Governed:
    """The same through the governor, with a ledger in memory."""

    governor: Governor | None = None

    def __init__(self, base_url: str, workdir: Path, api_format: ApiFormat = "openai-completions") -> None:
        if Governed.governor is None:
            ledger = TokenLedger(MemoryStore(SYSTEM_CLOCK, StoreSettings()), SYSTEM_CLOCK, heartbeat_s=None)
            Governed.governor = Governor(ledger=ledger)
        key_text = SecretStr("sk-bench-0123456789")
        model = ModelChoice("simulated", "simulated", base_url, key_text, None, "benchmark", api_format=api_format)
        settings = {"name": "bench", "limits": {"turn_tokens": "1000m", "max_context_tokens": 200_000}}
        profile = ResolvedProfile(profile=Profile.model_validate(settings), sources={})
        key = SessionKey("bench", workdir.name)
        spec = SessionSpec(key, "user", profile, model, workdir, "in-process")
        self.session = Governed.governor.open(spec, Conversation(), Deadline.after(30))
        self._turns = 0

    def ask(self, message: str) -> str:
        self._turns += 1
        report = self.session.turn(TurnRequest(f"{self.session._spec.key}-{self._turns}", message, "user"), _nothing)
        assert report.outcome == "answered", report
        return str(report.answer)

    def recall(self, messages: list[dict[str, Any]]) -> None:
        self.session._parts.agent.messages = list(messages)

    def close(self) -> None:
        self.session.close(Deadline.after(5))


def _nothing(_: object) -> None:
    """An event sink."""


def make(variant: str, base_url: str, workdir: Path) -> Bare | Governed:
    workdir.mkdir(parents=True, exist_ok=True)
    if variant == "governed":
        return Governed(base_url, workdir)
    return Bare(base_url, workdir, log=variant == "bare")


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU of one run, milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


def overhead(base_url: str, rounds: int, root: Path) -> dict[str, Any]:
    """Wall and CPU of a turn, by scenario and variant."""
    scenarios = {f"{n}_messages": (history(n), ANSWER) for n in (0, 50, 200)}
    scenarios["3_call_tool_loop"] = (history(0), TOOL_LOOP)
    found: dict[str, Any] = {}
    for name, (messages, directive) in scenarios.items():
        subjects = {variant: make(variant, base_url, root / f"{name}-{variant}") for variant in VARIANTS}
        samples: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
        question = f"What is the answer?\n@sim {json.dumps(directive)}"
        gc.collect()
        for number in range(rounds + 5):
            for variant, subject in subjects.items():
                subject.recall(messages)
                sample = measure(partial(subject.ask, question))
                if number >= 5:  # warm-up
                    samples[variant].append(sample)
        for subject in subjects.values():
            subject.close()
        found[name] = {variant: summary(values) for variant, values in samples.items()}
    return found


def wires(base_url: str, rounds: int, root: Path) -> dict[str, Any]:
    """Wall and CPU of a turn on each wire, bare without its log and governed, with a short and a long history."""
    found: dict[str, Any] = {}
    question = f"What is the answer?\n@sim {json.dumps(ANSWER)}"
    for api_format in get_args(ApiFormat):
        for length in (0, 200):
            workdirs = [root / f"{api_format}-{length}-{variant}" for variant in ("bare", "governed")]
            for workdir in workdirs:
                workdir.mkdir(parents=True)
            bare = Bare(base_url, workdirs[0], log=False, api_format=api_format)
            subjects = {"bare_without_log": bare, "governed": Governed(base_url, workdirs[1], api_format)}
            samples: dict[str, list[tuple[float, float]]] = {variant: [] for variant in subjects}
            for number in range(rounds + 5):
                for variant, subject in subjects.items():
                    subject.recall(history(length))
                    sample = measure(partial(subject.ask, question))
                    if number >= 5:  # warm-up
                        samples[variant].append(sample)
            for subject in subjects.values():
                subject.close()
            found[f"{api_format}, {length} messages"] = {name: summary(values) for name, values in samples.items()}
    return found


def wires_table(result: dict[str, Any]) -> str:
    """What `wires` found."""
    rows = [
        (turn, variant.replace("_", " "), *map(line.get, ("wall_ms_median", "wall_ms_p90", "cpu_ms_median")))
        for turn, variants in result["wires"].items()
        for variant, line in variants.items()
    ]
    return table(("wire", "variant", "wall, ms (median)", "p90", "CPU, ms"), rows)


def summary(samples: list[tuple[float, float]]) -> dict[str, Any]:
    walls, cpus = zip(*samples, strict=True)
    return {
        "wall_ms_median": round(statistics.median(walls), 2),
        "wall_ms_p90": round(statistics.quantiles(walls, n=10)[-1], 2),
        "cpu_ms_median": round(statistics.median(cpus), 2),
        "wall_ms": [round(value, 2) for value in walls],
        "cpu_ms": [round(value, 2) for value in cpus],
    }


def memory_child(variant: str, sessions: int, base_url: str) -> None:
    """In a process of its own: opens sessions, runs a turn on each, prints the bytes a session."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        question = f"hello\n@sim {json.dumps(ANSWER)}"
        first = make(variant, base_url, root / "warm")
        first.ask(question)
        gc.collect()
        before = process.memory_full_info().uss
        subjects = [make(variant, base_url, root / str(n)) for n in range(sessions)]
        opened = process.memory_full_info().uss
        for subject in subjects:
            subject.ask(question)
        gc.collect()
        after = process.memory_full_info().uss
        print(
            json.dumps({"opened": (opened - before) / sessions, "after_turn": (after - before) / sessions}), flush=True
        )
        os._exit(0)


def memory(base_url: str, counts: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in counts:
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--memory-child", variant, str(count), base_url]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            line = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(str(count), {})[variant] = {key: round(value / 1024, 1) for key, value in line.items()}
    return found


def start_up(rounds: int, state: Path) -> dict[str, Any]:
    """Wall time to the first byte of output and to the end, and CPU of the program with its children. Seconds."""
    program = [sys.executable, "-m", "agentao_gov.main"]
    commands = {"--help": ["--help"], "first simulated answer": ["run", "-q", "--model", "simulated", "hello"]}
    found: dict[str, Any] = {}
    for name, arguments in commands.items():
        samples = [_started(program + arguments, state) for _ in range(rounds + 1)][1:]  # the first reads the disk
        found[name] = {
            key: {"median": round(statistics.median(values), 3), "all": [round(value, 3) for value in values]}
            for key, values in zip(("first_byte_s", "end_s", "cpu_s"), zip(*samples, strict=True), strict=True)
        }
    return found


def _started(command: list[str], state: Path) -> tuple[float, float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    environment = {**os.environ, "AGENTAO_GOV_STATE": str(state)}
    # As users have it: Python keeps compiled modules.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
    ended = time.perf_counter() - began
    assert process.returncode == 0, command
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return first, ended, cpu


def sections(result: dict[str, Any]) -> dict[str, str]:
    """The parts of the `.md` that a run refreshes."""
    turns = [
        (scenario.replace("_", " "), variant.replace("_", " "), *map(line.get, ("wall_ms_median", "wall_ms_p90")),
         line["cpu_ms_median"])
        for scenario, variants in result["overhead"].items()
        for variant, line in variants.items()
    ]  # fmt: skip
    sessions = [
        (count, variant.replace("_", " "), line["opened"], line["after_turn"])
        for count, variants in result["memory_kib"].items()
        for variant, line in variants.items()
    ]
    starts = [
        (name, *(line[key]["median"] for key in ("first_byte_s", "end_s", "cpu_s")))
        for name, line in result["start_up"].items()
    ]
    return {
        "machine": machine(result["environment"]),
        "turns": table(("turn", "variant", "wall, ms (median)", "p90", "CPU, ms"), turns),
        "wires": wires_table(result),
        "memory": table(("live sessions", "variant", "KiB each, opened", "KiB each, after one turn"), sessions),
        "start": table(("command", "first byte, s", "end, s", "CPU with its children, s"), starts),
        "reading": reading(result),
    }


def reading(result: dict[str, Any]) -> str:
    """What the figures say, in the figures of this run."""
    cpu = {
        scenario: {variant: line["cpu_ms_median"] for variant, line in variants.items()}
        for scenario, variants in result["overhead"].items()
    }
    none, many = cpu["0_messages"], cpu["200_messages"]
    each = max(line["governed"]["after_turn"] for line in result["memory_kib"].values())
    bare = max(line["bare"]["after_turn"] for line in result["memory_kib"].values())
    return (
        f"With no history a governed turn takes {none['governed']} ms of CPU, a bare one {none['bare_without_log']} ms "
        f"without agentao's log and {none['bare']} ms with it; with 200 messages {many['governed']} ms against "
        f"{many['bare_without_log']} and {many['bare']} ms. A live session takes {each:.0f} KiB at most instead of "
        f"{bare:.0f}."
    )


def compact(result: dict[str, Any]) -> str:
    """JSON for people: each list of samples on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(
        r"\[[-0-9.,\s]+\]", lambda found: "[" + ", ".join(found[0][1:-1].replace(",", " ").split()) + "]", text
    )


def refresh_wires(rounds: int) -> None:
    """Measures the wires alone into the results that are there."""
    result = json.loads((HERE / "turn_overhead.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as directory, start_simulator() as simulator:
        os.environ["HOME"] = directory
        result["wires"] = wires(simulator.base_url, rounds, Path(directory))
    result["environment"]["wires_date"] = time.strftime("%Y-%m-%d", time.gmtime())
    result["environment"]["wires_load"] = round(os.getloadavg()[0], 2)
    print(wires_table(result))
    (HERE / "turn_overhead.json").write_text(compact(result) + "\n", encoding="utf-8")
    refresh(HERE / "turn_overhead.md", {"wires": wires_table(result)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--sessions", type=int, nargs="*", default=[100, 500])
    parser.add_argument("--quick", action="store_true", help="10 rounds, 50 sessions, nothing written")
    parser.add_argument("--wires-only", action="store_true", help="measure the wires alone, and keep the rest")
    parser.add_argument("--memory-child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.wires_only:
        refresh_wires(options.rounds)
        return
    if options.memory_child:
        variant, sessions, base_url = options.memory_child
        memory_child(variant, int(sessions), base_url)
    rounds, counts = (10, [50]) if options.quick else (options.rounds, options.sessions)
    with tempfile.TemporaryDirectory() as directory, start_simulator() as simulator:
        os.environ["HOME"] = directory
        result = {
            "environment": {
                "python": platform.python_version(),
                "machine": f"{platform.machine()}, {platform.system()}",
                "cores": os.cpu_count(),
                **{name: version(name) for name in ("agentao", "openai", "agentao-gov")},
                "load": round(os.getloadavg()[0], 2),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
            },
            "start_up": start_up(3 if options.quick else 9, Path(directory) / "state"),
            "overhead": overhead(simulator.base_url, rounds, Path(directory) / "sessions"),
            "wires": wires(simulator.base_url, rounds, Path(directory) / "wires"),
            "memory_kib": memory(simulator.base_url, counts),
        }
    parts = sections(result)
    print("\n\n".join(parts.values()))
    if not options.quick:
        (HERE / "turn_overhead.json").write_text(compact(result) + "\n", encoding="utf-8")
        refresh(HERE / "turn_overhead.md", parts)


if __name__ == "__main__":
    main()
