"""Another process of the service's user, with everything that an attacker could want; run as a program.

`python neighbour.py DIRECTORY SECRET` prints one JSON line once it is ready and then answers every connection with the
secret, until its standard input ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

_IPC_CREAT, _KEYRING_OF_USER, _KEYCTL_INVALIDATE = 0o1000, -4, 21


def main() -> None:
    directory, secret = Path(sys.argv[1]), sys.argv[2].encode()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0, 4096, _IPC_CREAT | 0o600)
    ctypes.memmove(libc.shmat(segment, None, 0), secret, len(secret))
    key = libc.syscall(248, b"user", b"neighbour", secret, len(secret), _KEYRING_OF_USER)
    memory = os.memfd_create("neighbour")
    os.write(memory, secret)
    shared = Path(f"/dev/shm/neighbour-{os.getpid()}")
    shared.write_bytes(secret)

    def reach(*_: object) -> None:
        with (directory / "reached").open("a") as reached:
            reached.write("reached\n")

    signal.signal(signal.SIGURG, reach)
    tcp, udp, named, abstract = (
        socket.socket(family, kind)
        for family, kind in (
            (socket.AF_INET, socket.SOCK_STREAM),
            (socket.AF_INET, socket.SOCK_DGRAM),
            (socket.AF_UNIX, socket.SOCK_STREAM),
            (socket.AF_UNIX, socket.SOCK_STREAM),
        )
    )
    tcp.bind(("127.0.0.1", 0))
    udp.bind(tcp.getsockname())
    named.bind(str(directory / "socket"))
    abstract.bind(f"\0neighbour-{os.getpid()}")
    for listener in (tcp, named, abstract):
        listener.listen()
    sources: list[Any] = [tcp, udp, named, abstract, sys.stdin.buffer]
    print(json.dumps({"port": tcp.getsockname()[1], "segment": segment, "key": key}), flush=True)
    while True:
        ready, _, _ = select.select(sources, [], [])
        for source in ready:
            if not isinstance(source, socket.socket):
                libc.syscall(250, _KEYCTL_INVALIDATE, key)
                libc.shmctl(segment, 0, None)
                shared.unlink()
                return
            reach()
            if source is udp:
                udp.recv(4096)
            else:
                with source.accept()[0] as connection:
                    connection.sendall(secret)


if __name__ == "__main__":
    main()
