"""What the service's processes do while the load runs: a row twice a second, from /proc and from `/metrics`.

The threads never raise: a service that cannot be read gives rows with holes, and a service that is gone is a finding
of the run, not of this module.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil

from agentao_gov.process import procfs
from agentao_gov.testrig.client import Scrape, ServiceClient

#: What the process that runs a session's agent calls itself; its warden, the zygote and the stock are others.
_SESSION = "gov-session"
_PERIOD_S = 0.5
_METRICS_TIMEOUT_S = 2.0
#: Older than this, what the service said of itself belongs to another moment.
_METRICS_AGE_S = 1.0
_SHARE_S = 5.0
_SHARE_S_MAX = 0.1
_PREFIX = "agentao_gov_"


def tree_of(pid: int) -> list[psutil.Process]:
    """The process and everything below it; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def listening_process(tree: Sequence[psutil.Process], port: int | None) -> psutil.Process | None:
    """The process that listens on the port: below wardens it is not the one that was started. None: nobody does."""
    return next((process for process in tree if _listens(process, port)), None)


def session_processes(tree: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that run a session's agent, oldest first; none unless sessions live in processes of their own."""
    stats = [(process, procfs.read_stat(process.pid)) for process in tree]
    named = [(stat.ref.start, process) for process, stat in stats if stat and stat.comm == _SESSION and not stat.dead]
    return [process for _, process in sorted(named, key=lambda pair: pair[0])]


def talks_to(process: psutil.Process, port: int | None) -> bool:
    """Whether the process holds an open connection to the port."""
    return any(c.status == psutil.CONN_ESTABLISHED and c.raddr.port == port for c in _connections(process))


def _listens(process: psutil.Process, port: int | None) -> bool:
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in _connections(process))


def _connections(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections(kind="inet"))
    except (psutil.Error, OSError):
        return []


@dataclass(frozen=True, slots=True)
class ServerRow:
    """One look. None: it could not be seen (a foreign service has no processes here)."""

    #: Wall time.
    at: float
    #: Memory of the service's whole process tree. Proportional (PSS): session processes that are forked share pages,
    #: and their resident sizes would add up to many times what there is.
    memory_bytes: int | None = None
    #: Of the service's own process.
    rss_bytes: int | None = None
    pss_bytes: int | None = None
    fds: int | None = None
    threads: int | None = None
    #: Processes below the service.
    children: int | None = None
    #: Cores' worth of CPU of the service's own process and of the whole tree since the last look.
    cpu: float | None = None
    tree_cpu: float | None = None
    #: Of the cores that the service may run on, by whomever: 1.0 is all of them.
    machine_cpu: float | None = None
    #: Cores' worth of the simulated model, where this run started one.
    model_cpu: float | None = None
    queue: int | None = None
    #: By state: idle, busy, ...
    sessions: dict[str, int] = field(default_factory=dict)
    #: By kind: mcp, shell, session, other.
    children_by_kind: dict[str, int] = field(default_factory=dict)
    threads_abandoned: int | None = None
    budget_used_ratio_max: float | None = None
    turns_total: int | None = None

    @property
    def resident(self) -> int | None:
        """Sessions in memory."""
        if not self.sessions:
            return None
        return sum(count for state, count in self.sessions.items() if state not in ("hibernated", "closing"))

    def to_dict(self, origin: float) -> dict[str, Any]:
        """For the report; times count from `origin`."""
        row = {name: value for name, value in asdict(self).items() if name != "at"}
        return {"at_s": round(self.at - origin, 2), **row}


class ServerSeries:
    """Samples in a thread of its own between `start` and `stop`. `rows` may be read at any time."""

    def __init__(self, url: str, pid: int | None, *, model_pid: int | None = None, period_s: float = _PERIOD_S) -> None:
        """Nothing is sampled yet.

        Args:
            url: the service's, for `/metrics`.
            pid: the process at the top of the service; None: it is elsewhere.
            model_pid: the simulated model's process, where there is one.
            period_s: from one look to the next.
        """
        self._client = ServiceClient(url)
        self._root = _process(pid)
        self._model = _process(model_pid)
        self._main: psutil.Process | None = None
        self._port = urlsplit(url).port
        self._period_s = period_s
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"loadtest-{name}", daemon=True)
            for name, run in (("series", self._run), ("metrics", self._follow))
        ]
        #: When `/metrics` was read last, and what it said; replaced by its own thread only.
        self._metrics: tuple[float, dict[str, Any]] = (0.0, {})
        self._last_cpu: dict[str, tuple[float, float]] = {}
        #: When each process of the tree was read last, and its proportional memory; None: never.
        self._shares: dict[int, tuple[float, int | None]] = {}
        #: Appended by the thread only.
        self.rows: list[ServerRow] = []

    def start(self) -> None:
        """Begins to sample."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads; the last row is taken before."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_METRICS_TIMEOUT_S + 3.0)

    def look(self) -> ServerRow:
        """One row, now. A service too busy to answer leaves its own counts out, and holds up nobody."""
        values: dict[str, Any] = {"at": time.time()}
        values |= self._processes()
        read_at, metrics = self._metrics
        if time.monotonic() - read_at <= _METRICS_AGE_S:
            values |= metrics
        return ServerRow(**values)

    def between(self, start: float, end: float) -> list[ServerRow]:
        """Rows of a stretch of wall time."""
        return [row for row in self.rows if start <= row.at < end]

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            self.rows.append(self.look())
            if self._stop.wait(max(0.05, self._period_s - (time.monotonic() - begun))):
                return

    def _follow(self) -> None:
        while True:
            begun = time.monotonic()
            values = _values(self._client.metrics(timeout_s=_METRICS_TIMEOUT_S))
            if values:
                self._metrics = (begun, values)
            if self._stop.wait(max(0.05, self._period_s - (time.monotonic() - begun))):
                return

    def _processes(self) -> dict[str, Any]:
        if self._root is None:
            return {}
        try:
            tree = [self._root, *self._root.children(recursive=True)]
            main = self._service_process(tree)
            with main.oneshot():
                rss, fds, threads = main.memory_info().rss, main.num_fds(), main.num_threads()
            # Also what was orphaned below the service and adopted by its wardens: only these are above it.
            above = {main.pid, *(process.pid for process in main.parents())}
            return {
                "memory_bytes": self._memory(tree, main),
                "rss_bytes": rss,
                "pss_bytes": _pss(main),
                "fds": fds,
                "threads": threads,
                "children": sum(process.pid not in above for process in tree),
                "cpu": self._cpu("main", [main]),
                "tree_cpu": self._cpu("tree", tree),
                "machine_cpu": self._machine_cpu(main),
                "model_cpu": None if self._model is None else self._cpu("model", [self._model]),
            }
        except (psutil.Error, OSError):
            return {}

    def _memory(self, tree: list[psutil.Process], main: psutil.Process) -> int:
        """The tree's proportional memory: the service's own as it is, its children's as last read.

        Reading one takes a millisecond, and ten on a busy machine: hundreds of session processes would turn a look
        twice a second into one every half minute. So each look reads the longest unread ones for a tenth of a second,
        and takes the median for those it has never come to.
        """
        seen = {process.pid: self._shares.get(process.pid, (0.0, None)) for process in tree}
        deadline = time.monotonic() + _SHARE_S_MAX
        for process in sorted(tree, key=lambda process: (process.pid != main.pid, seen[process.pid][0])):
            if process.pid != main.pid and (
                time.monotonic() > deadline or time.monotonic() - seen[process.pid][0] < _SHARE_S
            ):
                break
            seen[process.pid] = (time.monotonic(), _pss(process) or _rss(process))
        self._shares = seen
        known = [share for _, share in seen.values() if share is not None]
        return sum(known) + int(statistics.median(known or [0])) * (len(seen) - len(known))

    def _service_process(self, tree: list[psutil.Process]) -> psutil.Process:
        """The process that listens: with a warden above, it is not the one that was started."""
        if self._main is not None and self._main.is_running():
            return self._main
        self._main = listening_process(tree, self._port)
        return self._main or max(tree, key=_rss)

    def _cpu(self, name: str, processes: Iterable[psutil.Process]) -> float | None:
        used = 0.0
        for process in processes:
            times = _quietly(process.cpu_times, None)
            used += times.user + times.system if times is not None else 0.0
        now = time.monotonic()
        before = self._last_cpu.get(name)
        self._last_cpu[name] = (now, used)
        if before is None or now <= before[0]:
            return None
        return round(max(0.0, (used - before[1]) / (now - before[0])), 3)

    def _machine_cpu(self, main: psutil.Process) -> float | None:
        cores = main.cpu_affinity()
        times = psutil.cpu_times(percpu=True)
        idle = sum(times[core].idle + times[core].iowait for core in cores if core < len(times))
        now = time.monotonic()
        before = self._last_cpu.get("idle")
        self._last_cpu["idle"] = (now, idle)
        if before is None or now <= before[0] or not cores:
            return None
        return round(min(1.0, max(0.0, 1 - (idle - before[1]) / (now - before[0]) / len(cores))), 3)


def peaks_of(rows: Iterable[ServerRow]) -> dict[str, Any]:
    """The largest value of each column."""
    seen = list(rows)
    names = ("memory_bytes", "rss_bytes", "pss_bytes", "fds", "threads", "children", "cpu", "tree_cpu", "queue")
    peaks: dict[str, Any] = {
        name: max((v for row in seen if (v := getattr(row, name)) is not None), default=None) for name in names
    }
    peaks["resident_sessions"] = max((row.resident for row in seen if row.resident is not None), default=None)
    peaks["busy_sessions"] = max((row.sessions.get("busy", 0) for row in seen if row.sessions), default=None)
    return peaks


def _values(metrics: Scrape) -> dict[str, Any]:
    """A row's part of a scrape; empty for an empty one."""
    if not metrics.samples:
        return {}
    ratios = [value for _, value in metrics.labelled(f"{_PREFIX}budget_used_ratio")]
    numbers = {"queue": "queue_length", "threads_abandoned": "threads_abandoned"}
    seen = {name: metrics.get(_PREFIX + metric) for name, metric in numbers.items()}
    return {
        "sessions": _by_label(metrics, "sessions", "state"),
        "children_by_kind": _by_label(metrics, "child_processes", "kind"),
        **{name: int(value) for name, value in seen.items() if value is not None},
        "budget_used_ratio_max": max(ratios, default=None),
        "turns_total": int(metrics.get(f"{_PREFIX}turns_total") or 0),
    }


def _by_label(metrics: Scrape, name: str, label: str) -> dict[str, int]:
    return {labels.get(label, ""): int(value) for labels, value in metrics.labelled(_PREFIX + name)}


def _quietly(read: Callable[[], Any], fallback: Any) -> Any:
    try:
        return read()
    except (psutil.Error, OSError):
        return fallback


def _rss(process: psutil.Process) -> int:
    return int(_quietly(lambda: process.memory_info().rss, 0))


def _pss(process: psutil.Process) -> int | None:
    """Shared pages in proportion; None where the kernel does not say."""
    found: int | None = _quietly(lambda: int(process.memory_full_info().pss), None)
    return found


def _process(pid: int | None) -> psutil.Process | None:
    return None if pid is None else _quietly(lambda: psutil.Process(pid), None)
