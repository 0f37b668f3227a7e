"""The program that puts a command into its sandbox and then becomes it.

Runs as `python -I -S -c LOADER FOLDER PLAN command...`, where PLAN is what `packed` makes of `sandbox.Sandbox`. It is a
program because what it does to itself may not happen between fork and exec of a process with threads, and because
nothing of it can be taken back. Each command waits for it, so it imports little of the standard library and nothing
else: `json` and `signal` alone would take as long as the rest.

Two layers can hold a command:

- *bubblewrap*: namespaces of its own for files, processes, network and IPC. What is not mounted does not exist.
- *Landlock*: the kernel refuses every open outside the rules, signals to and traces of other processes, and TCP.
  It knows nothing of sockets of other kinds, of shared memory, and of calls that change a file's mode, owner or times:
  a seccomp filter refuses those, or has the supervisor above the command change what is inside the directory. All
  capabilities go, so that root is an ordinary user inside.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import _socket
import ctypes
import fcntl
import marshal
import os
import resource
import select
import struct
import sys
import time

#: Imported, not run as a script, because a script is compiled at each start.
_LOADER = "import sys; sys.path.append(sys.argv[1]); import sandbox_program; sandbox_program.main()"
_FOLDER = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120


def program(plan: dict[str, object], command: list[str]) -> list[str]:
    """The command line that runs `command` by `plan`: strings, numbers and lists of strings, as `main` reads them."""
    return [sys.executable, "-I", "-S", "-c", _LOADER, _FOLDER, marshal.dumps(plan).hex(), *command]


_LIBC = ctypes.CDLL(None, use_errno=True)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
_CAPABILITIES = 64
#: As `warden.tree_limits.TOOL_NICE`: a tenth of a turn's weight.
_NICE = 10
_EPERM, _EINVAL, _ENOSYS, _EOPNOTSUPP, _EAFNOSUPPORT = 1, 22, 38, 95, 97


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
    line += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):  # noqa: S108
        line += ["--size", str(plan["scratch_bytes"]), "--tmpfs", path]
    # After the private /tmp, below which any of them may be.
    for path in _paths(plan, "read"):
        if os.path.islink(path):  # noqa: PTH114 - /bin on most systems
            line += ["--symlink", os.readlink(path), path]  # noqa: PTH115
        else:
            line += ["--ro-bind", path, path]
    line += ["--bind", str(plan["root"]), str(plan["root"]), "--chdir", str(plan["cwd"])]
    # What is left of the machine's memory to write to has a limit.
    line += ["--remount-ro", "/dev", "--remount-ro", "/"]
    rules = _filter(alone=False, network=True, signals=True)
    if rules is not None:
        fd = os.memfd_create("seccomp", 0)
        os.write(fd, rules)
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
#: From this version on signals and abstract sockets can be held in.
_SCOPED = 6


def landlock_ruleset(root: str, *, read: list[str], devices: list[str], network: bool) -> int:
    """A descriptor of rules: write below `root`, read what `read` names, use `devices`. What none allows is refused.

    Signals, abstract sockets and, without `network`, TCP are refused as far as the kernel knows how. Raises OSError.
    """
    abi = landlock_abi()
    handled = (1 << _RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", handled, 0 if network or abi < 4 else _TCP, _SCOPES if abi >= _SCOPED else 0)
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
#: What changes a file's facts, which Landlock does not look at. Modes and times the supervisor changes itself, inside
#: the session's directory.
_OWNERS = ("chown", "lchown", "fchown", "fchownat", "utime", "utimes", "futimesat", "file_setattr")
_ATTRIBUTES = (
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
    *("setxattrat", "removexattrat"),
)
_ASKED = ("chmod", "fchmod", "fchmodat", "fchmodat2", "utimensat")
_CLONE_NEWUSER = 0x10000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_INET, _AF_INET6, _AF_NETLINK = 2, 10, 16

_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERROR, _ASK = 0x7FFF0000, 0x80000000, 0x00050000, 0x7FC00000
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

    def ask(self, *names: str) -> None:
        for name in names:
            self._at(name, [(_RETURN, 0, 0, _ASK)])

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
        made.refuse(*_OWNERS)
        made.refuse(*_ATTRIBUTES, error=_EOPNOTSUPP)
        made.ask(*_ASKED)
    return made.packed()


def _install(rules: bytes | None) -> int:
    """Puts the filter around this process; returns the descriptor on which its questions are heard."""
    if rules is None:
        raise OSError(f"no seccomp filter is known for {os.uname().machine}")
    buffer = ctypes.create_string_buffer(rules, len(rules))
    header = struct.pack("@HP", len(rules) // 8, ctypes.addressof(buffer))
    number = _SECCOMP[SECCOMP_MACHINES[os.uname().machine][1]]
    return _call(number, ctypes.c_uint(1), ctypes.c_uint(_NEW_LISTENER), header)


# ── changes that the supervisor makes for the command ─────────────────────────────────────────────

_SECCOMP = (317, 277)
_NEW_LISTENER = 8
_RECEIVE, _SEND, _VALID = 0xC0502100, 0xC0182101, 0x40082102
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_UTIME_NOW, _UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE
_PAGE = 4096


class _Clerk:
    """Answers the filter's questions: changes modes and times of what is below `root`, refuses the rest.

    What a question names is opened first, without effect, and then looked at: it cannot change its place afterwards,
    because the command can move nothing into its directory from outside.
    """

    def __init__(self, listener: int, root: str) -> None:
        self.listener = listener
        self._root = root
        column = SECCOMP_MACHINES[os.uname().machine][1]
        self._names = {_NUMBERS[name][column]: name for name in _ASKED}

    def answer(self) -> None:
        """Takes one question and answers it."""
        question = bytearray(80)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, question)
        except OSError:  # whoever asked is gone
            return
        number, pid, _, call = struct.unpack_from("=QIIi", question)
        error = 0
        try:
            self._do(self._names[call], pid, number, struct.unpack_from("=6Q", question, 32))
        except OSError as reason:
            error = -(reason.errno or _EPERM)
        except (ValueError, struct.error):
            error = -_EINVAL
        try:  # noqa: SIM105
            fcntl.ioctl(self.listener, _SEND, struct.pack("=QqiI", number, 0, error, 0))
        except OSError:
            pass

    def _do(self, name: str, pid: int, number: int, arguments: tuple[int, ...]) -> None:
        directory, path, flags = _AT_FDCWD, b"", 0
        if name == "chmod":
            path, mode = _path(pid, arguments[0]), arguments[1]
        elif name == "fchmod":
            directory, flags, mode = _signed(arguments[0]), _AT_EMPTY_PATH, arguments[1]
        else:
            directory, mode = _signed(arguments[0]), arguments[2]
            flags = 0 if name == "fchmodat" else arguments[3]
            if name == "utimensat" and not arguments[1]:
                flags |= _AT_EMPTY_PATH
            else:
                path = _path(pid, arguments[1])
        times = _times(pid, arguments[2]) if name == "utimensat" else None
        target = _open(pid, directory, path, flags)
        try:
            # What was read may have been another process's memory: the one that asked must still wait.
            fcntl.ioctl(self.listener, _VALID, struct.pack("=Q", number))
            here = f"/proc/self/fd/{target}"
            place = os.readlink(here)  # noqa: PTH115
            if place != self._root and not place.startswith(self._root + "/"):
                raise PermissionError(_EPERM, "outside")
            if name == "utimensat":
                _touch(here, times)
            else:
                # No program of a session runs as another user.
                os.chmod(here, mode & 0o1777)  # noqa: PTH101
        finally:
            os.close(target)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _open(pid: int, directory: int, path: bytes, flags: int) -> int:
    """The file that a process means, opened without effect."""
    base = os.open(f"/proc/{pid}/cwd" if directory == _AT_FDCWD else f"/proc/{pid}/fd/{directory}", os.O_PATH)
    if not path and flags & _AT_EMPTY_PATH:
        return base
    try:
        return os.open(path, os.O_PATH | (os.O_NOFOLLOW if flags & _AT_SYMLINK_NOFOLLOW else 0), dir_fd=base)
    finally:
        os.close(base)


def _path(pid: int, address: int) -> bytes:
    path, end, _ = _memory(pid, address, _PAGE).partition(b"\0")
    if not end or path.startswith((b"/proc/self", b"/proc/thread-self")):
        # Those would be this process's own.
        raise PermissionError(_EPERM, "no path")
    return path


def _times(pid: int, address: int) -> tuple[int, ...] | None:
    return struct.unpack("=4q", _memory(pid, address, 32)) if address else None


def _touch(path: str, times: tuple[int, ...] | None) -> None:
    if times is None:
        os.utime(path)
        return
    found = os.stat(path)  # noqa: PTH116
    wanted = []
    for seconds, rest, now in (times[0], times[1], found.st_atime_ns), (times[2], times[3], found.st_mtime_ns):
        if rest == _UTIME_NOW:
            wanted.append(time.time_ns())
        else:
            wanted.append(now if rest == _UTIME_OMIT else seconds * 10**9 + rest)
    os.utime(path, ns=(wanted[0], wanted[1]))


def _memory(pid: int, address: int, size: int) -> bytes:
    """Up to `size` bytes of another process's memory; fewer where its last page ends."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        here = os.pread(fd, min(size, _PAGE - address % _PAGE), address)
        try:
            return here if len(here) >= size else here + os.pread(fd, size - len(here), address + len(here))
        except OSError:
            return here
    finally:
        os.close(fd)


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


def _supervise(plan: dict[str, object], command: list[str]) -> None:
    """Runs the command below this process, changes modes and times for it, and ends all it left, wherever that is.

    Both are in a Landlock domain of the command's own, so a signal to everybody reaches nobody else; the command is in
    a further one inside, so it cannot signal this process.
    """
    scoped = landlock_abi() >= _SCOPED
    if scoped:
        outer = struct.pack("=QQQ", 0, 0, _SCOPES)
        restrict(_call(_CREATE_RULESET, outer, ctypes.c_size_t(len(outer)), ctypes.c_uint(0)))
        if _reaches(os.getppid()):
            raise OSError("signals are not held in")

    def end_all(*_: object) -> None:
        try:
            if scoped:
                os.kill(-1, signal.SIGKILL)
            else:
                os.killpg(0, signal.SIGKILL)
        except OSError:
            pass

    signal.signal(signal.SIGTERM, end_all)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    ours, theirs = _socket.socketpair()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ours.close()
        try:
            listener = _confine(plan)
            theirs.sendmsg([b"l"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("=i", listener))])
            os.close(listener)
            theirs.close()
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            _say(error)
        os._exit(126)
    theirs.close()
    # The command's pipes end with the command.
    os.closerange(0, 3)
    _, sent, _, _ = ours.recvmsg(1, _socket.CMSG_SPACE(4))
    if sent:
        _answer(_Clerk(struct.unpack("=i", sent[0][2])[0], str(plan["root"])), child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_all()
    os._exit(code if code >= 0 else 128 - code)


def _answer(clerk: _Clerk, child: int) -> None:
    """Answers questions until the command has ended."""
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(clerk.listener, select.POLLIN)
    poll.register(ended, select.POLLIN)
    while True:
        for fd, event in poll.poll():
            if fd == ended:
                return
            if event & select.POLLIN:
                clerk.answer()
            else:
                # Nobody is left who could ask.
                poll.unregister(fd)


def _reaches(pid: int) -> bool:
    """Whether this process could signal that one."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass
    return True


def _confine(plan: dict[str, object]) -> int:
    """Landlock's rules and the filter around this process, for good; where the filter's questions are heard."""
    ruleset = landlock_ruleset(
        str(plan["root"]),
        read=_paths(plan, "read"),
        devices=_paths(plan, "devices"),
        network=bool(plan["network"]),
    )
    _drop_capabilities()
    restrict(ruleset)
    os.makedirs(str(plan["scratch"]), mode=0o700, exist_ok=True)  # noqa: PTH103
    os.chdir(str(plan["cwd"]))
    return _install(_filter(alone=True, network=bool(plan["network"]), signals=landlock_abi() >= _SCOPED))


def _say(error: OSError) -> None:
    os.write(2, f"The sandbox could not be set up: {error}\n".encode())


def _yield_to_turns() -> None:
    """A command runs below the service's turns, and is what the kernel takes when memory runs out."""
    for path, value in (("/proc/self/oom_score_adj", b"900"), ("/proc/self/autogroup", b"%d" % _NICE)):
        try:
            fd = os.open(path, os.O_WRONLY)
            os.write(fd, value)
            os.close(fd)
        except OSError:  # one more layer, never a condition
            pass
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICE, os.getpriority(os.PRIO_PROCESS, 0)))


def main() -> None:
    """Never returns: it becomes the command or waits for it, or says why not and ends with 126."""
    plan, command = marshal.loads(bytes.fromhex(sys.argv[2])), sys.argv[3:]  # noqa: S302 - its own parent's
    try:
        _lower_limits(plan["rlimits"])
        _yield_to_turns()
        if plan["layer"] == "bubblewrap":
            command = _bubblewrap(plan, command)
        else:
            _supervise(plan, command)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        _say(error)
    os._exit(126)
