"""Two wardens, one above the other: even SIGKILL of one of them leaves nothing behind."""

from __future__ import annotations

import errno
import os

from .namespaces import mount_proc, unshare_pids
from .options import Options
from .watch import supervise

# See options.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = ["supervise_pair"]


def supervise_pair(child_main: Callable[[int], NoReturn], options: Options, *, pid_namespace: bool) -> NoReturn:
    """Two wardens, each ending the tree when the other dies; the inner one is init of a pid namespace if asked."""
    line_r, line_w = os.pipe()
    if pid_namespace and not unshare_pids():
        raise OSError(errno.EPERM, "no pid namespace; ask pid_namespace_works() first")

    def inner(_beat: int) -> NoReturn:
        os.close(line_w)
        os.setsid()  # a Ctrl-C reaches the outer warden alone and is passed on once: each signal is one rung
        if pid_namespace and not mount_proc():
            os._exit(71)
        options.lifeline, options.name = line_r, "gov-init"
        supervise(child_main, options)

    outer = Options(lifeline=options.lifeline, grace_s=options.grace_s + 0.1, name=options.name, leash=False)
    outer.cgroup, options.cgroup = options.cgroup, ""
    # The outer one says nothing but keeps the status pipe open: its end-of-file means that nothing at all is left.
    outer.closes = options.closes
    supervise(inner, outer)
