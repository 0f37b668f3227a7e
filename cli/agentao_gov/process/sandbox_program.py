"""The program that puts a command into its sandbox and then becomes it.

Runs as `python -I -S sandbox_program.py PLAN -- command...`, where PLAN is the JSON of `sandbox.Sandbox`, and imports
the standard library only. It is a program because what it does to itself may not happen between fork and exec of a
process with threads, and because nothing of it can be taken back.

Two layers can hold a command:

- *bubblewrap*: namespaces of its own for files, processes, network and IPC. What is not mounted does not exist.
- *Landlock*: the kernel refuses every open outside the rules, signals to and traces of other processes, and TCP.
  It knows nothing of sockets of other kinds, of shared memory, and of calls that change a file's mode, owner or times
  by its path: a seccomp filter refuses those. All capabilities go, so that root is an ordinary user inside.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys

__all__ = ["PROGRAM", "SECCOMP_MACHINES", "landlock_abi", "landlock_ruleset", "restrict"]

PROGRAM = os.path.abspath(__file__)  # noqa: PTH100

_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 22, 24, 38
_CAPABILITIES = 64
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97


def _call(number: int, *arguments: object) -> int:
    result = _LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(result)


def landlock_abi() -> int:
    """The kernel's version of Landlock; 0 where it has none or it is switched off."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except OSError:
        return 0


# ── bubblewrap ────────────────────────────────────────────────────────────────────────────────────


def _bubblewrap(plan: dict[str, object], command: list[str]) -> list[str]:
    """The command line of bubblewrap. `--disable-userns` and `--cap-drop` close the ways back to privileges."""
    line = [str(plan["bubblewrap"]), "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
    line += ["--die-with-parent"]
    if plan["network"]:
        line += ["--share-net"]
    for path in _paths(plan, "read"):
        if os.path.islink(path):  # noqa: PTH114 - /bin on most systems
            line += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        else:
            line += ["--ro-bind", path, path]
    line += ["--proc", "/proc", "--dev", "/dev", "--size", str(plan["scratch_bytes"]), "--tmpfs", "/tmp"]  # noqa: S108
    # After the private /tmp, below which it may be.
    line += ["--bind", str(plan["root"]), str(plan["root"]), "--chdir", str(plan["cwd"])]
    program = _filter(alone=False, network=True, signals=True)
    if program is not None:
        fd = os.memfd_create("seccomp", 0)
        os.write(fd, program)
        os.lseek(fd, 0, os.SEEK_SET)
        line += ["--seccomp", str(fd)]
    return [*line, "--", *command]


# ── Landlock ──────────────────────────────────────────────────────────────────────────────────────

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
#: Rights that mean something for a file; the kernel refuses others in a rule for one.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
#: How many rights of files each version of Landlock knows.
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP = 3
_SCOPES = 3


def landlock_ruleset(root: str, *, read: list[str], devices: list[str], network: bool) -> int:
    """A descriptor of rules: write below `root`, read what `read` names, use `devices`. What none allows is refused.

    Signals, abstract sockets and, without `network`, TCP are refused as far as the kernel knows how. Raises OSError.
    """
    abi = landlock_abi()
    handled = (1 << _RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", handled, 0 if network or abi < 4 else _TCP, _SCOPES if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for path in read:
        _allow(ruleset, path, _READ & handled)
    for path in devices:
        _allow(ruleset, path, (_READ_FILE | _WRITE_FILE) & handled)
    _allow(ruleset, root, handled & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV))
    return ruleset


def restrict(ruleset: int) -> None:
    """Puts this process and all it will start under the rules, for good. Raises OSError."""
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(f"/proc/self/fd/{fd}") and not os.path.isdir(path):  # noqa: PTH112
            rights &= _OF_FILES
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("=Qi", rights, fd), ctypes.c_uint(0))
    finally:
        os.close(fd)


def _drop_capabilities() -> None:
    """Also from what an exec as root would give back."""
    for capability in range(_CAPABILITIES):
        _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("=Ii", 0x20080522, 0)
    if _LIBC.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities could not be dropped")


# ── seccomp ───────────────────────────────────────────────────────────────────────────────────────

#: Numbers of system calls: x86_64, aarch64; None: it has no such call.
_NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "ioctl": (16, 29),
    "socket": (41, 198),
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "ptrace": (101, 117),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "kcmp": (312, 272),
    "process_madvise": (440, 440),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "prlimit64": (302, 261),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
#: Audit numbers of the machines whose calls are known, and their column above.
SECCOMP_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

#: Ways to the kernel's less tried parts, to other processes and to keys; and io_uring, which no filter sees into.
_NEVER = (
    *("ptrace", "bpf", "perf_event_open", "userfaultfd", "open_by_handle_at", "add_key", "request_key", "keyctl"),
    *("setns", "mount", "kcmp", "process_madvise"),
)
_NOT_HERE = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
#: What reaches others of the same user where there is no namespace between.
_SHARED = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "migrate_pages", "move_pages", "ioprio_set"),
)
#: Calls whose argument of that index must be 0: the caller itself.
_OF_OTHERS = {
    "prlimit64": 0,
    "sched_setparam": 0,
    "sched_setscheduler": 0,
    "sched_setaffinity": 0,
    "sched_setattr": 0,
    "setpriority": 1,
}
_SIGNALS = ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")
#: What changes a file by its path, which Landlock does not look at.
_METADATA = (
    *("chmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchownat", "utime", "utimes", "futimesat"),
    *("setxattr", "lsetxattr", "removexattr", "lremovexattr", "setxattrat", "removexattrat", "file_setattr"),
    *("fchown", "fsetxattr", "fremovexattr"),
)
_CLONE_NEWUSER = 0x10000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_INET, _AF_INET6, _AF_NETLINK = 2, 10, 16

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_Instruction = tuple[int, int, int, int]


def _argument(index: int) -> int:
    """Where the low half of an argument is in the filter's data."""
    return 16 + 8 * index


class _Filter:
    """Builds a classic BPF program; the number of the call is in the accumulator between the parts."""

    def __init__(self, audit: int, column: int) -> None:
        self._column = column
        self._code: list[_Instruction] = [
            (_LOAD, 0, 0, 4),
            (_EQUAL, 1, 0, audit),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),
            # x32 calls, which have numbers of their own.
            (_AT_LEAST, 0, 1, 0x40000000),
            (_RETURN, 0, 0, _ERROR | _ENOSYS),
        ]

    def _at(self, name: str, part: list[_Instruction]) -> None:
        number = _NUMBERS[name][self._column]
        if number is not None:
            self._code += [(_EQUAL, 0, len(part), number), *part]

    def refuse(self, *names: str, error: int = _EPERM) -> None:
        for name in names:
            self._at(name, [(_RETURN, 0, 0, _ERROR | error)])

    def refuse_unless_zero(self, name: str, index: int) -> None:
        refused = (_RETURN, 0, 0, _ERROR | _EPERM)
        self._at(name, [(_LOAD, 0, 0, _argument(index)), (_EQUAL, 0, 1, 0), (_RETURN, 0, 0, _ALLOW), refused])

    def refuse_bits(self, name: str, index: int, bits: int) -> None:
        refused = (_RETURN, 0, 0, _ERROR | _EPERM)
        self._at(name, [(_LOAD, 0, 0, _argument(index)), (_ANY_BIT, 0, 1, bits), refused, (_RETURN, 0, 0, _ALLOW)])

    def refuse_values(self, name: str, index: int, *values: int) -> None:
        tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
        end = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERROR | _EPERM)]
        self._at(name, [(_LOAD, 0, 0, _argument(index)), *tests, *end])

    def allow_values(self, name: str, index: int, *values: int) -> None:
        tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
        end = [(_RETURN, 0, 0, _ERROR | _EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)]
        self._at(name, [(_LOAD, 0, 0, _argument(index)), *tests, *end])

    def packed(self) -> bytes:
        code = [*self._code, (_RETURN, 0, 0, _ALLOW)]
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _filter(*, alone: bool, network: bool, signals: bool) -> bytes | None:
    """The filter as the kernel takes it; None on a machine whose calls are not known.

    `alone`: there are no namespaces between the command and others of its user.
    """
    machine = SECCOMP_MACHINES.get(os.uname().machine)
    if machine is None:
        return None
    made = _Filter(*machine)
    made.refuse(*_NEVER)
    made.refuse(*_NOT_HERE, error=_ENOSYS)
    made.refuse_bits("clone", 0, _CLONE_NEWUSER)
    made.refuse_bits("unshare", 0, _CLONE_NEWUSER)
    made.refuse_values("ioctl", 1, _TIOCSTI, _TIOCLINUX)
    if alone:
        made.refuse(*_SHARED)
        for name, index in _OF_OTHERS.items():
            made.refuse_unless_zero(name, index)
        if not signals:
            made.refuse(*_SIGNALS)
        if network:
            made.allow_values("socket", 0, _AF_INET, _AF_INET6, _AF_NETLINK)
        else:
            made.refuse("socket")
        made.refuse(*_METADATA)
        # With a path; without one it is the open file that a descriptor names.
        made.refuse_unless_zero("utimensat", 1)
        if os.geteuid() == 0:
            made.refuse("fchmod")
    return made.packed()


def _install(program: bytes | None) -> None:
    if program is None:
        raise OSError(f"no seccomp filter is known for {os.uname().machine}")
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_SECCOMP, 2, header, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")


# ── the program ───────────────────────────────────────────────────────────────────────────────────


def _paths(plan: dict[str, object], key: str) -> list[str]:
    paths = plan[key]
    assert isinstance(paths, list)
    return [path for path in paths if os.path.lexists(path)]


def _lower_limits(limits: object) -> None:
    assert isinstance(limits, dict)
    for name, value in limits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def main() -> None:
    """Never returns: it becomes the command, or says why not and ends with 126."""
    plan, command = json.loads(sys.argv[1]), sys.argv[3:]
    try:
        _lower_limits(plan["rlimits"])
        if plan["layer"] == "bubblewrap":
            command = _bubblewrap(plan, command)
        else:
            paths = {key: _paths(plan, key) for key in ("read", "devices")}
            ruleset = landlock_ruleset(plan["root"], **paths, network=bool(plan["network"]))
            _drop_capabilities()
            restrict(ruleset)
            os.makedirs(plan["scratch"], mode=0o700, exist_ok=True)  # noqa: PTH103
            _install(_filter(alone=True, network=bool(plan["network"]), signals=landlock_abi() >= 6))
            os.chdir(plan["cwd"])
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"The sandbox could not be set up: {error}\n")
    os._exit(126)


if __name__ == "__main__":
    main()
