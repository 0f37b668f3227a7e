"""Which of the processes below a service is which: the one that serves, and those that hold sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil

from agentao_gov.process import procfs

__all__ = ["listening_process", "session_processes", "talks_to", "tree_of"]

#: What the process that runs a session's agent calls itself; its warden, the zygote and the stock are others.
_SESSION = "gov-session"


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
