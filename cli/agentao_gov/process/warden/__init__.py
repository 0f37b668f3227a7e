"""The warden: a small supervisor above a process, which ends the whole tree when either side dies.

Runs as a program, `python -I -S .../warden/__main__.py [options] -- command...`, and imports a few standard modules
only, nothing of the package around it, so that it stays small (about 4 MiB of its own) and cannot fail with the thing
it guards. The zygote calls `supervise` in a fork instead.

- *Lifeline*: a pipe whose write end only the owner holds. Its end-of-file means the owner died, however it died.
- *Sub-reaper*: whatever daemonises below becomes the warden's own child, so nothing escapes by double fork or by
  emptying its environment. Killing is race-free: direct children cannot have their pids reused before they are
  reaped here, and the tree is gone exactly when `waitpid` says that there are no children.
- *Heartbeat*: a service whose interpreter lock is held by a C call cannot beat; stale means SIGABRT (faulthandler
  dumps the stacks), then SIGKILL, then a restart where asked for.
- *Pair*: two wardens watch each other, so that even SIGKILL of the outer one leaves nothing behind.
"""

from __future__ import annotations

import os

from .system import name_process, pid_namespace_works, prctl
from .tree_limits import TOOL_NICE
from .watch import RESTART_EXIT, Options, Warden, supervise, supervise_pair

__all__ = [
    "PROGRAM",
    "RESTART_EXIT",
    "TOOL_NICE",
    "Options",
    "Warden",
    "name_process",
    "pid_namespace_works",
    "prctl",
    "supervise",
    "supervise_pair",
]

#: The program, for `python -I -S`. A plain string: pathlib is too large for it.
PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")  # noqa: PTH100, PTH118, PTH120
