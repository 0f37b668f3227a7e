"""How honest the load generator is, beside plain Locust users and wrk on the same stub in one run.

    python benchmarks/loadgen.py [--seconds 10]

Two scenes. *Instant*: a stub that answers at once; 500 sessions with a turn a second each. What a tool reports is then
its own error, and how late it sends is its own doing. *Stall*: 200 requests a second for 10 s, and for two seconds in
the middle nothing is answered; the true p90 from the intended starts is 1,033 ms, whoever waits in line or not.
Plain Locust is `FastHttpUser` with `constant_pacing`, its figures are its own (`--json`); wrk has one thread and as
many connections as fit; neither knows intended starts. *Peak*: as many requests a second as each can send.

Writes loadgen.json beside this file, and the tables of loadgen.md between its two markers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.options import LoadOptions
from agentao_gov.loadtest.run import LoadTestRun
from agentao_gov.loadtest.view import SilentView, Stop

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
BODY = json.dumps({"message": "hello", "profile": "qa", "user": "u"})

PLAIN_LOCUST = f"""
import itertools
from locust import FastHttpUser, constant_pacing, task

numbers = itertools.count()

class Plain(FastHttpUser):
    wait_time = constant_pacing({{pacing}})

    def on_start(self):
        self.path = f"/v1/sessions/s{{next(numbers)}}/turns"

    @task
    def turn(self):
        self.client.post(self.path, data={BODY!r}, name="turn")
"""

WRK = f"""
wrk.method = "POST"
wrk.body = {BODY!r}
wrk.headers["Content-Type"] = "application/json"
wrk.path = "/v1/sessions/s/turns"
"""


@contextmanager
def stub(**settings: Any) -> Iterator[str]:
    """The tests' stub, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loadtest.stub", json.dumps(settings)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def ours(url: str, *, rate: float, users: int, seconds: float, turns: int) -> dict[str, Any]:
    """`agentao-gov loadtest`, open loop, equal gaps."""
    options = LoadOptions(
        target=url, checklist=False, mix={"qa": 1.0}, rate=rate, users=users, duration_s=seconds, process="constant",
        turns_per_session=turns, think_scale=0.0, thresholds=("turn_p95<30s",),
    )  # fmt: skip
    test = LoadTestRun(options, SilentView(), Stop())
    test.prepare()
    return _row(test.run(), seconds)


def _row(report: LoadTestReport, seconds: float) -> dict[str, Any]:
    late = report.generator["lateness_ms"]
    return {
        "requests": report.turns.attempted,
        "per_s": round(report.turns.attempted / seconds, 1),
        "p50_ms": report.latency_ms["turn"].p50,
        "p90_ms": report.latency_ms["turn"].p90,
        "p99_ms": report.latency_ms["turn"].p99,
        "sent_late_p50_ms": late["p50"],
        "sent_late_p99_ms": late["p99"],
        "judged": report.generator["bound"] or "on schedule",
    }


def plain_locust(url: str, *, users: int, seconds: float, pacing_s: float) -> dict[str, Any]:
    """Users of plain Locust; its own percentiles."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "locustfile.py").write_text(PLAIN_LOCUST.replace("{pacing}", f"{pacing_s:g}"))
        done = subprocess.run(
            [sys.executable, "-m", "locust", "--headless", "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s",
             "--host", url, "--json", "--only-summary"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    entry = json.loads(done.stdout[done.stdout.index("[") :])[0]
    times = sorted((float(ms), count) for ms, count in entry["response_times"].items())
    span_s = max(0.001, entry["last_request_timestamp"] - entry["start_time"])
    return {
        "requests": entry["num_requests"],
        "per_s": round(entry["num_requests"] / span_s, 1),
        **{f"p{q}_ms": _weighted(times, q) for q in (50, 90, 99)},
        "sent_late_p50_ms": None,
        "sent_late_p99_ms": None,
        "judged": "does not say",
    }


def _weighted(times: list[tuple[float, int]], percentile: float) -> float | None:
    total = sum(count for _, count in times)
    seen = 0
    for value, count in times:
        seen += count
        if seen >= percentile / 100 * total:
            return value
    return None


def wrk(url: str, *, connections: int, seconds: float) -> dict[str, Any] | None:
    """wrk, closed loop; None where it is not installed."""
    if shutil.which("wrk") is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK)
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "--timeout",
            "10s",
            "--latency",
            "-s",
            script.name,
        ]
        out = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    percentiles = {f"p{q}_ms": _duration_ms(_found(rf"(?m)^\s+{q}%\s+(\S+)", out)) for q in (50, 90, 99)}
    return {
        "requests": int(_found(r"(\d+) requests in", out)),
        "per_s": float(_found(r"Requests/sec:\s+(\S+)", out)),
        **percentiles,
        "sent_late_p50_ms": None,
        "sent_late_p99_ms": None,
        "judged": "does not say",
    }


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match is not None, text
    return match[1]


def _duration_ms(text: str) -> float:
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if text.endswith(unit):
            return round(float(text.removesuffix(unit)) * factor, 3)
    raise ValueError(text)


def peak(url: str, seconds: float) -> dict[str, Any]:
    """`agentao-gov loadtest` without pauses: sessions that ask again as soon as they were answered."""
    options = LoadOptions(
        target=url, checklist=False, mix={"qa": 1.0}, users=50, duration_s=seconds, turns_per_session=1000,
        think_scale=0.0, thresholds=("turn_p95<30s",), max_turns=1_000_000, max_tokens=10**9, spawn_rate=500.0,
    )  # fmt: skip
    test = LoadTestRun(options, SilentView(), Stop())
    test.prepare()
    return _row(test.run(), seconds)


def instant(seconds: float) -> dict[str, Any]:
    """500 sessions with a turn a second each: what is reported is the tool's own error."""
    rows = {}
    with stub() as url:
        rows["agentao-gov"] = ours(url, rate=500, users=500, seconds=seconds, turns=max(1, int(seconds)))
    with stub() as url:
        rows["locust users"] = plain_locust(url, users=500, seconds=seconds, pacing_s=1.0)
    with stub() as url:
        rows["wrk"] = wrk(url, connections=50, seconds=seconds)
    return rows


def stall(seconds: float) -> dict[str, Any]:
    """200 requests a second and two seconds of silence; the tools without a rate get few connections, as is usual."""
    settings = {"stall_at_s": 0.4 * seconds, "stall_for_s": 2.0}
    rows = {}
    with stub(**settings) as url:
        rows["agentao-gov"] = ours(url, rate=200, users=200, seconds=seconds, turns=1)
    with stub(**settings) as url:
        rows["locust users"] = plain_locust(url, users=20, seconds=seconds, pacing_s=0.1)
    with stub(**settings) as url:
        rows["wrk"] = wrk(url, connections=10, seconds=seconds)
    return rows


def fastest(seconds: float) -> dict[str, Any]:
    """As many as each can: 50 connections, no pause. The stub is one Python process, and may be what is full."""
    rows = {}
    with stub() as url:
        rows["agentao-gov"] = peak(url, seconds)
    with stub() as url:
        rows["locust users"] = plain_locust(url, users=50, seconds=seconds, pacing_s=0.0)
    with stub() as url:
        rows["wrk"] = wrk(url, connections=50, seconds=seconds)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    load_before = [round(x, 2) for x in os.getloadavg()]
    scenes = {"instant": instant(seconds), "stall": stall(seconds), "peak": fastest(seconds)}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} × {platform.machine()}, Linux {platform.release()}",
        "load_average_before": load_before,
        "versions": {name: version(name) for name in ("agentao-gov", "locust", "gevent", "geventhttpclient")},
        "python": platform.python_version(),
        "seconds": seconds,
        "true_p90_of_the_stall_ms": _true_p90_ms(seconds),
        "scenes": scenes,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    tables = _tables(result)
    page = Path(__file__).with_suffix(".md")
    head, _, rest = page.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n\n{tables}\n\n{END}{tail}")
    print(tables)


def _true_p90_ms(seconds: float) -> float:
    """From the intended starts: a fifth of them wait for what is left of two seconds."""
    starts = [n / 200 for n in range(int(200 * seconds))]
    waits = sorted(max(0.0, 0.4 * seconds + 2 - at) if at >= 0.4 * seconds else 0.0 for at in starts)
    return round(waits[int(0.9 * len(waits)) - 1] * 1000, 1)


def _tables(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"**Run.** {result['date']}, {result['machine']}, Python {result['python']}, {versions}; "
        f"{result['seconds']:g} s a cell; load average before: {', '.join(map(str, result['load_average_before']))}.",
    ]
    for scene, tools in result["scenes"].items():
        extra = f" (true p90 {result['true_p90_of_the_stall_ms']:,.0f} ms)" if scene == "stall" else ""
        lines += [
            "",
            f"*{scene.capitalize()}*{extra}",
            "",
            "| | requests | a second | p50 | p90 | p99 | sent late p50 | sent late p99 | its own word |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for tool, row in tools.items():
            if row is None:
                lines.append(f"| {tool} | not installed | | | | | | | |")
                continue
            times = [row[f"{name}_ms"] for name in ("p50", "p90", "p99", "sent_late_p50", "sent_late_p99")]
            cells = " | ".join("–" if value is None else f"{value:,.1f} ms" for value in times)
            lines.append(f"| {tool} | {row['requests']:,} | {row['per_s']:,.0f} | {cells} | {row['judged']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"\n{time.monotonic() - started:.0f} s")
