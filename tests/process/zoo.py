"""Badly behaved processes, as programs to run: each names the way it tries to outlive its session.

All of them live at most `LIFE_S`, so that even a failed test leaves nothing behind for long.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agentao_gov.process import procfs

LIFE_S = 60

#: name -> program. Each prints one line on standard output when it is in place.
PROGRAMS: dict[str, str] = {
    "polite": f"""
import sys, threading, os
threading.Timer({LIFE_S}, os._exit, (0,)).start()
print("up", flush=True)
sys.stdin.read()
os._exit(0)
""",
    "stubborn": f"""
import signal, time
for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)
print("up", flush=True)
time.sleep({LIFE_S})
""",
    "helper": f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep({LIFE_S})"])
print("up", flush=True)
sys.stdin.read()
""",
    "daemon": f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print("up", flush=True)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2): os.dup2(null, fd)
        time.sleep({LIFE_S})
    os._exit(0)
os.wait()
sys.stdin.read()
""",
    "refork": f"""
import os, time
print("up", flush=True)
null = os.open(os.devnull, os.O_RDWR)
for fd in (0, 1, 2): os.dup2(null, fd)
end = time.monotonic() + {LIFE_S}
os.setsid() if os.getpid() != os.getsid(0) else None
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
""",
}


def start(name: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a program of the zoo in a session of its own, as the MCP SDK does, and waits until it is in place."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROGRAMS[name]],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"up\n"
    return child


def until(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Polls a condition until it holds or time is up."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.005)
    return True


def waited_for_processor_s() -> float:
    """Seconds since boot in which some process of this machine was ready to run and had no processor.

    Zero where the kernel does not count (no PSI): then a second is a second.
    """
    try:
        line = Path("/proc/pressure/cpu").read_text().splitlines()[0]
    except OSError:
        return 0.0
    return int(line.rpartition("total=")[2]) / 1e6


def running(word: str) -> list[int]:
    """The pids of whoever has this word on its command line."""
    found = []
    for pid in procfs.all_pids():
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process can open nothing more meanwhile, as a service that has used up its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
