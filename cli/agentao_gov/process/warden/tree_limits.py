"""What a warden sees when it looks at its tree: limits that no rlimit holds for a whole tree, and who should yield."""

from __future__ import annotations

import os

from .processes import below, proportional, resident

#: What tools run at, a tenth of a turn's weight. A build still gets whatever is left; a fork bomb gets no more.
#: A nice value counts within one scheduling group. Where the kernel makes a group of each session of processes (setsid,
#: `sched_autogroup_enabled`), the group has a nice value of its own, which a new group does not inherit.
TOOL_NICE = 10


def lower(pid: int, nice: int) -> None:
    """Lowers a process (or a thread, by its number); one more layer, never a condition."""
    try:
        if os.getpriority(os.PRIO_PROCESS, pid) < nice:
            os.setpriority(os.PRIO_PROCESS, pid, nice)
    except OSError:
        pass


def lower_session(pid: int, nice: int) -> None:
    """Lowers the scheduling group of the session a process is in, where there is such a thing."""
    try:
        fd = os.open(f"/proc/{pid}/autogroup", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, b"%d" % nice)
    except OSError:  # the kernel takes ten of these a second from an ordinary user
        pass
    finally:
        os.close(fd)


#: How often memory and process counts are looked at while they move, and how often when they do not.
_LOOK_S, _LOOK_QUIET_S = 0.1, 0.25
#: A tool was just started, or the tree grows: a fork bomb makes some hundred processes in a tenth of a second.
_LOOK_SOON_S = 0.02
_GROWS = 4


class Look:
    """Looks at what is below one warden, the more often the more happens there."""

    def __init__(self, memory_bytes: int, processes: int) -> None:
        self._memory_bytes = memory_bytes
        self._processes = processes
        #: When to look again, monotonic; infinite where there is nothing to look for.
        self.due = 0.0 if memory_bytes or processes else float("inf")
        self._gap_s = _LOOK_QUIET_S
        self._resident_last = 0
        self._known: set[int] = set()

    def soon(self, now: float) -> None:
        """Something was started below: look more often for a while."""
        if self.due < float("inf"):
            self._gap_s = _LOOK_SOON_S
            self.due = min(self.due, now + _LOOK_SOON_S)

    def take(self, now: float, child: int) -> tuple[str, int, int] | None:
        """One look. The limit that is exceeded, with what was observed and what is allowed; None: all is well."""
        tree = below()
        fresh = [pid for pid in tree if pid not in self._known and pid != child]
        self._known = set(tree)
        _demote(fresh)
        in_memory = sum(map(resident, tree))
        moved = abs(in_memory - self._resident_last) > 4 << 20
        self._resident_last = in_memory
        self._plan(now, len(fresh), busy=moved or in_memory * 2 > self._memory_bytes > 0)
        if 0 < self._processes < len(tree):
            return "session_processes", len(tree), self._processes
        if 0 < self._memory_bytes < in_memory:
            # Resident counts pages shared with the zygote in every process; the fair share costs a millisecond.
            share = sum(map(proportional, tree))
            if share > self._memory_bytes:
                return "session_memory", share, self._memory_bytes
        return None

    def _plan(self, now: float, fresh: int, *, busy: bool) -> None:
        longest = _LOOK_S if busy else _LOOK_QUIET_S
        self._gap_s = _LOOK_SOON_S if fresh >= _GROWS else min(longest, self._gap_s * 2)
        self.due = now + self._gap_s


def _demote(fresh: list[int]) -> None:
    """New processes below the session's own one are tools and MCP servers: they yield to turns."""
    mine = os.getsid(0)
    for pid in fresh:
        lower(pid, TOOL_NICE)
        try:
            session = os.getsid(pid)
        except OSError:
            continue
        if session == pid != mine:
            lower_session(pid, TOOL_NICE)
