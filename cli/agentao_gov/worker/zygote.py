"""The zygote: a small preloaded parent that forks ready session processes in milliseconds.

Importing the runtime takes a second and some 60 MB; a fork of a process that has done it takes milliseconds and shares
the pages. It stays single-threaded, because a fork of a threaded process inherits locks that nobody will ever release.
Control is a socket of whole messages (SOCK_SEQPACKET): a JSON object with four descriptors (wire, lifeline, status,
standard error) in, `{"pid": N}` out. Its end-of-file ends the zygote; the sessions have lifelines of their own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from agentao_gov.process import warden
from agentao_gov.process.oslimits import OsLimits

#: What a session needs, including what agentao and the SDKs import only when first used.
PRELOAD = (
    "agentao",
    "agentao.acp.server",
    "agentao.mcp",
    "agentao.memory",
    "agentao.skills",
    "agentao.embedding",
    "agentao.host.models",
    "agentao.host.schema",
    "agentao.host.stream",
    "agentao.tools",
    "mcp.client.stdio",
    "mcp.client.session",
    "openai",
    "openai.resources.chat.chat",
    "openai.resources.chat.completions.completions",
    "openai.resources.models",
    "openai.lib._chat_completion_resources",
    "openai.lib.streaming.chat",
    "openai.types.chat.completions",
    "jiter",
    "encodings.idna",
    "agentao_gov.budget",
    "agentao_gov.config",
    "agentao_gov.governor",
    "agentao_gov.worker.child",
)
MESSAGE_BYTES_MAX = 65536


def preload() -> None:
    """Imports everything and moves it out of the collector's sight, so that a collection does not touch its pages."""
    for name in PRELOAD:
        importlib.import_module(name)
    from agentao_gov.worker import child as worker
    from agentao_gov.worker import rehearsal

    worker.warm_up()
    rehearsal.rehearse()
    gc.collect()
    gc.freeze()
    # The collector stays off here: a collection just before a fork would dirty pages in every child.
    gc.disable()


def _worker_main(order: dict[str, Any], wire: int) -> NoReturn:
    """In the new session process: limits, standard streams, then the worker."""
    from agentao_gov.worker import child as worker

    warden.name_process("gov-ready")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    OsLimits.from_wire(order["limits"]).apply()
    os.dup2(wire, 0)
    os.dup2(wire, 1)
    os.close(wire)
    gc.enable()
    code = 1
    try:
        code = worker.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # the top of the process
        sys.excepthook(*sys.exc_info())
    os._exit(code)


def _fork_session(order: dict[str, Any], fds: list[int], control: socket.socket, *, pid_namespace: bool) -> int:
    """Forks a warden, which forks the worker. Returns the warden's pid."""
    wire, lifeline, status, errors = fds
    pid = os.fork()
    if pid:
        return pid
    try:
        control.close()
        os.setsid()
        # Nothing of a session holds the service's own standard error: a tool could write into that file.
        os.dup2(errors, 2)
        os.close(errors)
        memory_bytes, processes = OsLimits.from_wire(order["limits"]).tree_limits()
        options = warden.Options(
            lifeline=lifeline,
            status=status,
            grace_s=order["grace_s"],
            memory_bytes=memory_bytes,
            processes=processes,
            cgroup=order["cgroup"],
        )

        def main(_beat: int) -> NoReturn:
            _worker_main(order, wire)

        # The warden must not hold the wire: its other end waits for end-of-file.
        options.closes = (wire,)
        if pid_namespace:
            warden.supervise_pair(main, options, pid_namespace=True)
        warden.supervise(main, options)
    except BaseException:  # a fork must never return into the zygote's loop
        sys.excepthook(*sys.exc_info())
    os._exit(70)


def serve(control: socket.socket) -> None:
    """Forks on demand until the owner closes the control socket."""
    pid_namespace = warden.pid_namespace_works()
    tasks = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    control.send(json.dumps({"ready": True, "pid_namespace": pid_namespace, "tasks": tasks}).encode())
    # Children are reaped by the kernel: nobody here waits for them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, fds, _flags, _address = socket.recv_fds(control, MESSAGE_BYTES_MAX, 4)
        if not message:
            return
        try:
            order = json.loads(message)
            pid = _fork_session(order, fds, control, pid_namespace=pid_namespace and order["pid_namespace"])
            answer: dict[str, Any] = {"pid": pid}
        except (OSError, ValueError, KeyError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            for fd in fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        control.send(json.dumps(answer).encode())


def main() -> NoReturn:
    """`python -m agentao_gov.worker.zygote FD`"""
    warden.name_process("gov-zygote")
    control = socket.socket(fileno=int(sys.argv[1]))
    # A Ctrl-C on the terminal is for the service, which then closes the control socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preload()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(control)
    os._exit(0)


if __name__ == "__main__":
    main()
