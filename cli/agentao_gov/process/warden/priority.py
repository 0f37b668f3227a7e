"""Who yields to whom when there are more runnable processes than processors: tools to turns.

A nice value counts within one scheduling group. Where the kernel makes a group of each session of processes (setsid,
`sched_autogroup_enabled`), the group has a nice value of its own, which a new group does not inherit.
"""

from __future__ import annotations

import os

__all__ = ["TOOL_NICE", "lower", "lower_session"]

#: What tools run at, a tenth of a turn's weight. A build still gets whatever is left; a fork bomb gets no more.
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
