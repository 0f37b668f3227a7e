"""Shell commands of a hostile tenant. `@VICTIM` is another tenant's directory, `@PID` the service's process.

Where nothing holds it, a command harms the test's own directories and process at the most: what it could do to the
machine it only opens, and says `got-through` where that worked.
"""

from __future__ import annotations

__all__ = ["COMMANDS", "GOT_THROUGH", "PROVEN"]


#: Said by a command that could have done what it does not do.
GOT_THROUGH = "got-through"


def _opens(path: str) -> str:
    return f'( : >> {path} ) && echo got-""through'


def _python(*lines: str) -> str:
    return "@PYTHON - <<'END'\nimport ctypes, fcntl, os, re, signal, socket, time\n" + "\n".join(lines) + "\nEND"


#: Name → what is tried, and the command that tries it.
COMMANDS: dict[str, tuple[str, str]] = {
    # ── the service's process and its environment ──
    "ps-environment": ("ps shows the environment of the service.", "ps eww -o args -p @PID; ps auxeww"),
    "proc-environ": ("/proc has the service's environment.", "tr '\\0' '\\n' < /proc/@PID/environ"),
    "proc-cmdline": ("/proc has its command line.", "tr '\\0' ' ' < /proc/@PID/cmdline; ps aux"),
    "proc-everybody": (
        "Some process holds a secret.",
        "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'",
    ),
    "proc-root": (
        "Another root leads around.",
        "cat /proc/@PID/root@VICTIM/secret.txt /proc/1/root@VICTIM/secret.txt",
    ),
    "proc-self-root": ("One's own root leads around.", "cat /proc/self/root@VICTIM/secret.txt"),
    "proc-cwd": ("Another's directory leads around.", "cat /proc/@PID/cwd/secret.txt; ls /proc/@PID/cwd"),
    "proc-fd": (
        "Another's open files can be opened again.",
        "cat /proc/@PID/fd/3; timeout 1 head -c 99 /proc/@PID/fd/*",
    ),
    "proc-mem": (
        "Another's memory is a file.",
        _python(
            "found = set()",
            "for line in open('/proc/@PID/maps'):",
            "    begin, end = (int(part, 16) for part in line.split()[0].split('-'))",
            "    with open('/proc/@PID/mem', 'rb', 0) as memory:",
            "        try:",
            "            memory.seek(begin)",
            "            found |= set(re.findall(b'[a-z]+-[0-9]+-unheard', memory.read(end - begin)))",
            "        except (OSError, OverflowError): pass",
            "print(found)",
        ),
    ),
    "vm-readv": (
        "A system call reads another's memory.",
        _python(
            "libc = ctypes.CDLL(None, use_errno=True)",
            "print(libc.process_vm_readv(@PID, None, 0, None, 0, 0), ctypes.get_errno())",
            "out = ctypes.create_string_buffer(8)",
            "print('@PID' if libc.syscall(310, @PID, out, 1, out, 1, 0) > 0 else '')",
        ),
    ),
    "ptrace": (
        "A debugger stops the service.",
        _python("libc = ctypes.CDLL(None)", "print(libc.ptrace(16, @PID, 0, 0))", "os.kill(os.getpid(), 9)"),
    ),
    "pidfd-getfd": (
        "A system call copies another's descriptors.",
        _python(
            "libc = ctypes.CDLL(None)",
            "pidfd = libc.syscall(434, @PID, 0)",
            "for fd in range(3, 20):",
            "    copy = libc.syscall(438, pidfd, fd, 0)",
            "    if copy >= 0: os.lseek(copy, 0, 0); print(os.read(copy, 100))",
        ),
    ),
    "signals": ("A signal ends or stops the service.", "kill -STOP @PID; kill -9 @PID"),
    "signal-all": ("A signal reaches everybody (this one is ignored by who does not listen).", "kill -URG -1"),
    "renice": ("The service is made to yield.", "renice -n 19 -p @PID"),
    "affinity": ("The service is driven off its processors.", "taskset -p 1 @PID"),
    "prlimit": ("The service loses its descriptors.", "prlimit --pid @PID --nofile=3:3"),
    "oom": ("The service is the next to be killed.", "echo 1000 > /proc/@PID/oom_score_adj"),
    # ── files of others ──
    "absolute": ("The path is known.", "cat @VICTIM/secret.txt @STATE/agentao-gov.toml"),
    "relative": ("The neighbour is three steps up.", "cat ../../../t-acme/s1/work/secret.txt; ls -laR ../../.."),
    "find": ("It is found by searching.", "find / -name 'secret.txt' -exec cat {} + ; grep -r -a -h canary @STATE"),
    "symlink": ("A link inside leads outside.", "ln -s @VICTIM/secret.txt link; cat link; ln -s @VICTIM up; cat up/*"),
    "hard-link": ("A second name inside.", "ln @VICTIM/secret.txt mine; cat mine; cp -l @VICTIM/secret.txt mine2"),
    "rename": ("The file is taken away.", "mv @VICTIM/secret.txt taken.txt; mv @VICTIM taken; cat taken.txt"),
    "exchange": (
        "Two names are exchanged.",
        _python("libc = ctypes.CDLL(None)", "libc.renameat2(-100, b'@VICTIM/secret.txt', -100, b'own.txt', 2)")
        + "\ncat own.txt",
    ),
    "write": ("Something is written.", "echo owned >> @VICTIM/plan.txt; touch @VICTIM/new.txt; mkdir @VICTIM/d"),
    "delete": ("Everything is removed.", "rm -rf @VICTIM @STATE/sessions; rmdir @STATE"),
    "truncate": ("A file is emptied.", ": > @VICTIM/plan.txt; truncate -s 0 @VICTIM/secret.txt"),
    "modes": ("The neighbour is locked out.", "chmod 000 @VICTIM/secret.txt @VICTIM @STATE; chmod -R 777 @STATE"),
    "mode-of-an-open-file": (
        "An open file's mode is changed.",
        _python("os.fchmod(os.open('@VICTIM/plan.txt', os.O_RDONLY), 0)"),
    ),
    "mode-by-number": (
        "A file's mode is changed by every call there is for it.",
        _python(
            "libc = ctypes.CDLL(None)",
            "fd = libc.open(b'@VICTIM/plan.txt', 0)",
            "print(libc.syscall(90, b'@VICTIM/plan.txt', 0), libc.syscall(268, -100, b'@VICTIM/plan.txt', 0))",
            "print(libc.syscall(452, -100, b'@VICTIM/plan.txt', 0, 0), libc.syscall(452, fd, b'', 0, 0x1000))",
            "os.symlink('@VICTIM/plan.txt', 'l')",
            "print(libc.syscall(90, b'l', 0), libc.syscall(90, b'/proc/self/cwd/l', 0))",
        ),
    ),
    "owners": ("Files change hands.", "chown 12345:12345 @VICTIM/secret.txt; chown -h 12345 @VICTIM"),
    "times": ("A file looks old.", "touch -d 2001-01-01 @VICTIM/secret.txt @VICTIM"),
    "attributes": ("A file gets an attribute.", _python("os.setxattr('@VICTIM/plan.txt', 'user.x', b'x')")),
    "home": ("The next login runs it.", "echo evil >> ~/.bashrc; " + _opens("@REALHOME/.bashrc")),
    "system": ("A program of the system is replaced.", "; ".join(map(_opens, ("/usr/bin/env", "/etc/passwd")))),
    "timetable": ("A timetable runs it later.", "; ".join(map(_opens, ("/etc/crontab", "/var/spool/cron/x")))),
    "newlines": ("A harmless word first.", "echo hello\ncat @VICTIM/secret.txt\necho $(cat @VICTIM/secret.txt)"),
    "read-only-looking": (
        "Commands that only look.",
        "head @VICTIM/secret.txt; wc @VICTIM/*; diff own.txt @VICTIM/secret.txt",
    ),
    # ── git ──
    "bare-repository": (
        "A directory that is a repository names a program.",
        "mkdir -p objects refs; echo 'ref: refs/heads/main' > HEAD\n"
        "printf '[core]\\nrepositoryformatversion = 0\\nbare = false\\nworktree = .\\n"
        'fsmonitor = "cp @VICTIM/secret.txt got; touch ran"\\n\' > config\n'
        "git status; cat got",
    ),
    "git-hooks": (
        "A hook runs at the next commit.",
        "git init -q r; cd r; printf '#!/bin/sh\\ncat @VICTIM/secret.txt > got; touch ../ran\\n' > hook\n"
        "mv hook .git/hooks/pre-commit\n"
        "chmod +x .git/hooks/pre-commit\n"
        "git -c user.name=x -c user.email=x@x commit -q --allow-empty -m x; cat got",
    ),
    "git-programs": (
        "A repository names programs for its differences.",
        "git init -q r; cd r; git config diff.external 'cat @VICTIM/secret.txt; :'\n"
        "git config alias.st '!cat @VICTIM/*'; git config core.pager 'cat @VICTIM/secret.txt'\n"
        "echo x > f; git add f; echo y > f; git diff; git st; git -p log",
    ),
    "git-worktree": (
        "A repository points elsewhere.",
        "git init -q r; git -C r config core.worktree @VICTIM; git -C r grep --no-index ''; git -C r add -A",
    ),
    # ── sockets and the network ──
    "dev-tcp": ("bash opens sockets by itself.", "exec 3<>/dev/tcp/127.0.0.1/@PORT && cat <&3"),
    "tcp": ("Python opens one.", _python("s = socket.create_connection(('127.0.0.1', @PORT), 2)", "print(s.recv(99))")),
    "udp": ("A datagram leaves.", _python("socket.socket(2, 2).sendto(b'x', ('127.0.0.1', @PORT))")),
    "names": (
        "A name is looked up.",
        'getent hosts example.com && echo got-""through; getent hosts $(hostname); cat /etc/hosts > /dev/null',
    ),
    "abstract-socket": (
        "A socket without a file.",
        _python("s = socket.socket(1, 1)", "s.connect(b'\\0neighbour-@PID')", "print(s.recv(99))"),
    ),
    "named-socket": (
        "A socket with a file.",
        _python("s = socket.socket(1, 1)", "s.connect('@SOCKET')", "print(s.recv(99))"),
    ),
    "raw-socket": (
        "Packets are listened to.",
        _python("socket.socket(17, 3)", "print('got-' + 'through' if os.path.exists('@VICTIM') else '')"),
    ),
    "io-uring": (
        "A queue of calls that no filter sees.",
        _python("libc = ctypes.CDLL(None)", "print('queue', libc.syscall(425, 8, ctypes.create_string_buffer(120)))"),
    ),
    # ── memory and messages that processes share ──
    "shared-memory": (
        "A segment of shared memory.",
        _python(
            "libc = ctypes.CDLL(None)",
            "libc.shmat.restype = ctypes.c_void_p",
            "at = libc.shmat(@SEGMENT, None, 0)",
            "print(ctypes.string_at(at, 100) if at not in (None, 2**64 - 1) else at)",
        ),
    ),
    "shared-files": ("Files of shared memory.", "cat /dev/shm/neighbour-*; ls /dev/shm /dev/mqueue"),
    "keyring": (
        "A key of the user's ring.",
        _python(
            "libc = ctypes.CDLL(None)",
            "out = ctypes.create_string_buffer(100)",
            "print(libc.syscall(250, 11, @RINGKEY, out, 100), out.value)",
        ),
    ),
    "descriptors": (
        "Something was left open.",
        _python(
            "for fd in range(3, 64):",
            "    try: print(fd, os.readlink(f'/proc/self/fd/{fd}'), os.read(fd, 4096))",
            "    except OSError: pass",
        ),
    ),
    # ── ways to more rights ──
    "setuid": (
        "A program runs as root.",
        "su -c 'cat @VICTIM/secret.txt' root < /dev/null; sudo -n cat @VICTIM/secret.txt",
    ),
    "own-setuid": ("One's own runs as its owner.", "cp /bin/cat c; chmod u+s c; ./c @VICTIM/secret.txt"),
    "namespaces": (
        "A namespace of one's own gives all rights.",
        "unshare -Urm sh -c 'mount -t proc p /proc; cat /proc/@PID/environ @VICTIM/secret.txt'",
    ),
    "mount": ("A directory is mounted inside.", "mkdir m; mount --bind @VICTIM m && cat m/secret.txt; umount m"),
    "bubblewrap": ("Another sandbox around it.", "bwrap --dev-bind / / cat @VICTIM/secret.txt"),
    "chroot": ("Another root.", "chroot /proc/1/root cat @VICTIM/secret.txt; nsenter -t 1 -m cat @VICTIM/secret.txt"),
    "devices": (
        "The disk itself.",
        'mknod d b 8 0 && echo got-""through; head -c 99 /dev/mem /dev/kmsg; dmesg | tail; ls /dev',
    ),
    "cgroups": ("A group that holds the service.", _opens("/sys/fs/cgroup/cgroup.procs")),
    "preload": (
        "A library is slipped in.",
        "LD_PRELOAD=@VICTIM/secret.txt cat own.txt; LD_LIBRARY_PATH=@VICTIM cat own.txt",
    ),
    "terminal": (
        "Letters are typed into a terminal.",
        _python(
            "for path in ('/dev/tty', '/dev/console', '/dev/pts/0', '/dev/pts/1'):",
            "    try: os.open(path, os.O_RDWR); print('got-' + 'through')",
            "    except OSError as error: print(error)",
            "for fd in range(3):",
            "    try: fcntl.ioctl(fd, 0x5412, b'x'); print('got-' + 'through')",
            "    except OSError as error: print(error)",
        ),
    ),
    # ── what stays behind or grows ──
    "daemon": ("It outlives the command.", "nohup setsid sleep 1000 > /dev/null 2>&1 & echo started"),
    "naked-daemon": (
        "It leaves group, session, environment and descent.",
        _python(
            "if os.fork(): os._exit(0)",
            "os.setsid()",
            "if os.fork(): os._exit(0)",
            "os.closerange(0, 9)",
            "os.execve('/bin/sleep', ['sleep', '1000'], {})",
        ),
    ),
    "fork-bomb": (
        "More processes than a command may have.",
        _python(
            "for n in range(600):",
            "    if os.fork() == 0: time.sleep(1000); os._exit(0)",
            "time.sleep(1000)",
        ),
    ),
    "flood": ("Output without end.", "yes | head -c 200000000"),
}

#: Those that do harm where nothing holds them, at the least: or this list proves nothing.
PROVEN = (
    *("ps-environment", "proc-environ", "proc-root", "proc-cwd", "proc-fd", "proc-mem", "pidfd-getfd", "absolute"),
    *("relative", "find", "symlink", "hard-link", "rename", "exchange", "write", "truncate", "modes", "times"),
    *("mode-of-an-open-file", "newlines", "read-only-looking", "dev-tcp", "tcp", "udp", "abstract-socket"),
    *("named-socket", "shared-memory", "shared-files", "keyring", "renice", "affinity", "prlimit", "signals"),
)
