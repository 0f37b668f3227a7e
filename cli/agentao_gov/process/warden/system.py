"""The few system calls of a warden that Python does not wrap."""

from __future__ import annotations

import ctypes
import os
import signal

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36


def prctl(option: int, value: int | bytes) -> bool:
    """One prctl call; False where the system refuses."""
    return bool(LIBC.prctl(option, value, 0, 0, 0) == 0)


def name_process(name: str) -> None:
    """The name `ps` shows, and the census reads."""
    prctl(PR_SET_NAME, name.encode()[:15])


def join_cgroup(cgroup: str) -> None:
    """Moves this process into a control group; one more layer, never a condition."""
    if cgroup:
        try:
            with open(f"{cgroup}/cgroup.procs", "w") as file:  # noqa: PTH123
                file.write("0")
        except OSError:
            pass


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent's *thread* ends: only right in a fork of a single-threaded parent."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(137)


# Of process id namespaces, and of the mounts that one needs.
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000


def unshare_pids() -> bool:
    """A pid namespace for the next fork; with a user namespace where that is what it takes."""
    if LIBC.unshare(_CLONE_NEWPID) == 0:
        return True
    uid, gid = os.geteuid(), os.getegid()
    if LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWPID) != 0:
        return False
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError:
        return False
    return True


def mount_proc() -> bool:
    """A `/proc` of the new pid namespace; without it pids would be read in one namespace and used in another."""
    if LIBC.unshare(_CLONE_NEWNS) != 0 or LIBC.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    return bool(LIBC.mount(b"proc", b"/proc", b"proc", flags, None) == 0)


def pid_namespace_works() -> bool:
    """Tries it out in a fork: unshare, become pid 1, mount `/proc`."""
    pid = os.fork()
    if pid == 0:
        if not unshare_pids():
            os._exit(1)
        inner = os.fork()
        if inner == 0:
            os._exit(0 if os.getpid() == 1 and mount_proc() else 1)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def user_namespace_works() -> bool:
    """Tries it out in a fork."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(_CLONE_NEWUSER) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0
