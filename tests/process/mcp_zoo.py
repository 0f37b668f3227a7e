"""MCP servers that behave badly when they should go: `python -I -S mcp_zoo.py KIND DIRECTORY`.

Just enough of the protocol for a client (initialize, tools/list, tools/call), without any import that costs time.
Each process that stays writes `pid start KIND` into DIRECTORY/alive, so that a test finds it even without its
environment.
"""

# ruff: noqa: PTH123
import json
import os
import signal
import subprocess
import sys
import time

LIFE_S = 60
KIND, DIRECTORY = sys.argv[1], sys.argv[2]


def note(name: str = "alive") -> None:
    """Writes this process down."""
    with open("/proc/self/stat", "rb") as stat:
        start = stat.read().rpartition(b") ")[2].split()[19].decode()
    fd = os.open(f"{DIRECTORY}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{os.getpid()} {start} {KIND}\n".encode())
    os.close(fd)


def detach() -> None:
    """Lets go of the protocol's pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def helper() -> None:
    """A process in a session of its own, which a polite server leaves behind."""
    program = "import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], start_new_session=True)
    with open(f"/proc/{child.pid}/stat", "rb") as stat:
        start = stat.read().rpartition(b") ")[2].split()[19].decode()
    with open(f"{DIRECTORY}/alive", "a") as file:
        file.write(f"{child.pid} {start} {KIND}\n")


def daemon() -> None:
    """Double fork, a session of its own, and nothing of its environment left: neither descent nor tag finds it."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            detach()
            program = f"import time; time.sleep({LIFE_S})"
            note()
            os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", program], {})
        os._exit(0)
    os.waitpid(pid, 0)


def refork() -> None:
    """A child that is another process every millisecond."""
    if os.fork():
        return
    os.setsid()
    detach()
    end = time.monotonic() + LIFE_S
    while time.monotonic() < end:
        if os.fork():
            os._exit(0)
        time.sleep(0.001)


def serve() -> None:
    """Answers until end-of-input."""
    tools = [{"name": "wait", "description": "Waits.", "inputSchema": {"type": "object", "properties": {}}}]
    for line in sys.stdin:
        message = json.loads(line)
        method, number = message.get("method"), message.get("id")
        if number is None:
            continue
        if method == "initialize":
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "zoo", "version": "1"},
            }
        elif method == "tools/list":
            result = {"tools": tools}
        elif method == "tools/call":
            note("called")
            time.sleep(float(message["params"].get("arguments", {}).get("seconds", 0)))
            result = {"content": [{"type": "text", "text": "waited"}]}
        else:
            print(json.dumps({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no"}}), flush=True)
            continue
        print(json.dumps({"jsonrpc": "2.0", "id": number, "result": result}), flush=True)


if KIND == "stubborn":
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
note()
note("started")
{"helper": helper, "daemon": daemon, "refork": refork}.get(KIND, lambda: None)()
serve()
if KIND == "stubborn":
    time.sleep(LIFE_S)
