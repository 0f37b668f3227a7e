"""The warden's command line."""

from __future__ import annotations

import os
import sys

from .system import PR_SET_CHILD_SUBREAPER, pid_namespace_works, prctl, user_namespace_works
from .watch import Options, supervise, supervise_pair

# Typing costs a third of the start time of this program, and annotations are never evaluated.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def _probe() -> NoReturn:
    """What this machine offers, one word a line: `layers` reads it."""
    print("subreaper" if prctl(PR_SET_CHILD_SUBREAPER, 1) else "-")  # noqa: T201
    try:
        os.close(os.pidfd_open(os.getpid()))
        print("pidfd")  # noqa: T201
    except OSError:
        print("-")  # noqa: T201
    sys.stdout.flush()
    print("user_namespace" if user_namespace_works() else "-")  # noqa: T201
    sys.stdout.flush()
    print("pid_namespace" if pid_namespace_works() else "-")  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


def _parse(arguments: list[str]) -> tuple[Options, set[str], list[str]]:
    """`--name value` pairs and flags up to `--`; then the command."""
    options, flags = Options(), set()
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            break
        name = word[2:].replace("-", "_")
        if name in ("pair", "pid_namespace", "probe"):
            flags.add(name)
        elif name == "heartbeat":
            options.heartbeat = True
        elif hasattr(options, name):
            kind = type(getattr(options, name))
            setattr(options, name, kind(next(rest)))
        else:
            sys.exit(f"warden: unknown option {word}")
    return options, flags, list(rest)


def main() -> NoReturn:
    """The program."""
    options, flags, command = _parse(sys.argv[1:])
    if "probe" in flags:
        _probe()
    for fd in (options.lifeline, options.status):
        if fd >= 0:
            os.set_inheritable(fd, False)

    def run(beat_fd: int) -> NoReturn:
        if beat_fd >= 0:
            os.set_inheritable(beat_fd, True)
            os.environ["AGENTAO_GOV_HEARTBEAT_FD"] = str(beat_fd)
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            os.write(2, f"warden: cannot run {command[0]}: {error}\n".encode())
            os._exit(127)

    if "pair" in flags or "pid_namespace" in flags:
        pid_namespace = "pid_namespace" in flags and pid_namespace_works()
        supervise_pair(run, options, pid_namespace=pid_namespace)
    supervise(run, options)
