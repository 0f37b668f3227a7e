"""A session's process tree: found by tag, by descent and by process group session, and killed whole.

Two things make this hard. A pid is reused, so every signal goes through a pidfd that was checked against the start
time after it was opened. And a tree may grow while it is being killed, so members are stopped until a look finds
nothing new, then killed, and the look repeated until it comes back empty; new pids are chased by number between the
full looks, because a server that re-forks every millisecond is gone before a full scan reaches it.
A process that empties its environment *and* daemonises leaves tag and descent: only a warden above catches that one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agentao_gov.process import procfs
from agentao_gov.process.procfs import ProcessRef, Stat
from agentao_gov.process.tags import TAG_VARIABLE, Kind, Tag, child_env


class Tally:
    """A count that only grows. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self, number: int) -> None:
        """Adds `number`, which is not negative."""
        with self._lock:
            self._total += number

    @property
    def total(self) -> int:
        """All so far, in this process."""
        with self._lock:
            return self._total


#: How many child processes had to be killed because they did not leave by themselves, `orphans_killed_total`: fed by
#: the sweep at the start, by trees killed after a close, by what wardens had to end.
ORPHANS_KILLED = Tally()


_TAG = TAG_VARIABLE.encode()
#: Rest between looks that changed nothing but have not come back empty (a killed process takes ~1 ms to go).
_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class KillResult:
    """What a kill did. `survivors` is empty unless time ran out or the system refused."""

    killed: int
    survivors: tuple[int, ...] = ()


def send_signal(ref: ProcessRef, signum: int) -> bool:
    """Signals this very process, never another that got its pid. False if it is gone or not ours to signal."""
    try:
        fd = os.pidfd_open(ref.pid)
    except OSError:
        return False
    try:
        # Opened first, compared second: the descriptor is pinned to whoever held the pid at open.
        stat = procfs.read_stat(ref.pid)
        if stat is None or stat.ref != ref:
            return False
        signal.pidfd_send_signal(fd, signum)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def _protected() -> frozenset[int]:
    """This process and all above it: a worker started with its session's tag must not find itself."""
    found, pid = {0, 1}, os.getpid()
    while pid not in found:
        found.add(pid)
        stat = procfs.read_stat(pid)
        pid = stat.ppid if stat is not None else 0
    return frozenset(found)


def _closure(processes: Iterable[Stat], members: set[ProcessRef]) -> None:
    """Adds all descendants of members, and whoever is in the session (setsid) a member leads."""
    children: dict[int, list[Stat]] = {}
    for stat in processes:
        children.setdefault(stat.ppid, []).append(stat)
        if stat.sid != stat.ref.pid:
            children.setdefault(stat.sid, []).append(stat)
    frontier = [ref.pid for ref in members]
    while frontier:
        for stat in children.get(frontier.pop(), ()):
            if stat.ref not in members:
                members.add(stat.ref)
                frontier.append(stat.ref.pid)


@dataclass
class _Hunt:
    """One kill in progress: looks, stops, kills, until nothing is left or time is up."""

    tags: frozenset[str]
    roots: frozenset[ProcessRef]
    protected: frozenset[int]

    def __post_init__(self) -> None:
        self.hit: set[ProcessRef] = set()
        self._seen_pid = 0

    def _tagged(self, pid: int) -> bool:
        return bool(self.tags) and procfs.environ_value(pid, _TAG) in self.tags

    def look(self) -> set[ProcessRef]:
        """Every living member, by a full scan."""
        self._seen_pid = procfs.last_pid()
        everyone = [s for s in procfs.stats() if s.ref.pid not in self.protected]
        members = {s.ref for s in everyone if s.ref in self.roots or s.ref in self.hit or self._tagged(s.ref.pid)}
        _closure(everyone, members)
        dead = {s.ref for s in everyone if s.dead}
        return members - dead

    def chase(self, signum: int) -> bool:
        """Signals members born since the last look, walking the pids handed out. True if there were any."""
        found = False
        # Those born during one walk are met in the next; the bound only guards against a machine full of forks.
        for _ in range(16):
            newest = procfs.last_pid()
            if newest <= self._seen_pid:  # nothing new, or the counter wrapped: the next full look sees it
                break
            fresh = range(self._seen_pid + 1, newest + 1)
            self._seen_pid = newest
            known = {ref.pid for ref in self.hit}
            for pid in fresh:
                stat = None if pid in self.protected else procfs.read_stat(pid)
                if stat is None or stat.dead or not (self._tagged(pid) or stat.ppid in known):
                    continue
                # A thread's number cannot be opened as a pidfd, so only processes get past this.
                if send_signal(stat.ref, signum):
                    self.hit.add(stat.ref)
                    found = True
        return found

    def freeze(self, until: float) -> set[ProcessRef]:
        """Stops members until two looks agree, so that nothing can fork any more."""
        stopped: set[ProcessRef] = set()
        while True:
            members = self.look()
            fresh = members - stopped
            for ref in fresh:
                send_signal(ref, signal.SIGSTOP)
            stopped |= fresh
            self.hit |= fresh
            born = self.chase(signal.SIGSTOP)
            if not (fresh or born) or time.monotonic() >= until:
                return members

    def kill(self, until: float) -> tuple[ProcessRef, ...]:
        """Kills until a look comes back empty; returns who is left when time is up."""
        while True:
            members = self.freeze(until)
            if not members:
                return ()
            for ref in members:
                send_signal(ref, signal.SIGKILL)
            self.chase(signal.SIGKILL)
            if time.monotonic() >= until:
                return tuple(ref for ref in self.look() if procfs.alive(ref))
            time.sleep(_PAUSE_S)
            # A child of ours stays a zombie until someone reaps it; whoever started it does, we must not.


def kill_processes(
    tags: Iterable[Tag | str] = (),
    roots: Iterable[ProcessRef] = (),
    *,
    within_s: float = 1.0,
    protect: Iterable[int] = (),
) -> KillResult:
    """Kills everything that carries one of the tags or descends from one of the roots, but never the caller.

    Blocks until nothing is left, at most about `within_s`. Safe from any thread.
    """
    hunt = _Hunt(frozenset(map(str, tags)), frozenset(roots), _protected() | frozenset(protect))
    left = hunt.kill(time.monotonic() + within_s)
    return KillResult(len(hunt.hit) - len(left), tuple(sorted(ref.pid for ref in left)))


class SessionTree:
    """The child processes of one session: its MCP servers, shells and everything those started.

    Thread-safe: it holds no state but the tag and the roots added to it.
    """

    def __init__(self, tag: Tag | str, roots: Iterable[ProcessRef] = ()) -> None:
        self.tag = str(tag)
        self._roots = frozenset(roots)

    def env(self, kind: Kind | None = None) -> Mapping[str, str]:
        """What each child of the session must find in its environment."""
        return child_env(self.tag, kind)

    def members(self) -> tuple[ProcessRef, ...]:
        """Who is alive now."""
        hunt = _Hunt(frozenset({self.tag}), self._roots, _protected())
        members = hunt.look()
        hunt.chase(0)
        return tuple(sorted(ref for ref in members | hunt.hit if procfs.alive(ref)))

    def kill(self, within_s: float = 1.0) -> KillResult:
        """Ends all of them by force; idempotent, from any thread. Whoever is still there counts as an orphan."""
        result = kill_processes({self.tag}, self._roots, within_s=within_s)
        ORPHANS_KILLED.add(result.killed)
        return result

    def end(self, grace_s: float, within_s: float = 1.0) -> KillResult:
        """Asks them to leave (SIGTERM), waits up to `grace_s`, then kills who stayed."""
        asked = self.members()
        for ref in asked:
            send_signal(ref, signal.SIGTERM)
        until = time.monotonic() + grace_s
        with contextlib.suppress(OSError):
            while time.monotonic() < until and any(procfs.alive(ref) for ref in asked):
                time.sleep(0.005)
        return self.kill(within_s)
