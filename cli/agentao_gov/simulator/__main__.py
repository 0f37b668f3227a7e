"""The simulator's own process: `python -m agentao_gov.simulator [--port N] [--script FILE]
[--limits FILE]`.

With `--lifeline` the first line of standard input is the script as JSON, and the end of standard input is the end of
the process: it cannot outlive whoever started it, even one that was killed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading

from agentao_gov.errors import ConfigError
from agentao_gov.simulator import tokens
from agentao_gov.simulator.script import Script, load_limits, load_script
from agentao_gov.simulator.server import SimulatorServer

# Loopback only: it answers anyone and keeps what it was sent.
HOST = "127.0.0.1"


def main() -> int:
    """Serves until the lifeline or a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m agentao_gov.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--script", help="a .toml or .json script")
    parser.add_argument("--limits", help="a .toml or .json file: requests_per_minute, tokens_per_minute, concurrency")
    parser.add_argument("--lifeline", action="store_true", help="end with standard input")
    options = parser.parse_args()
    try:
        script = load_script(json.loads(sys.stdin.readline())) if options.lifeline else load_script(options.script)
        if options.limits:
            script = script.model_copy(update={"capacity": load_limits(options.limits)})
        asyncio.run(_serve(script, options.port, lifeline=options.lifeline))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"The simulator cannot listen on {HOST}:{options.port}: {error}\n")
        return 1
    return 0


async def _serve(script: Script, port: int, *, lifeline: bool) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if lifeline:
        loop.add_reader(sys.stdin.fileno(), _watch, sys.stdin.fileno(), over)
    server = await SimulatorServer(script).listen(HOST, port)
    # The table loads while the first client is still starting up.
    threading.Thread(target=tokens.warm, name="token-table", daemon=True).start()
    bound = server.sockets[0].getsockname()[1]
    sys.stdout.write(json.dumps({"port": bound, "pid": os.getpid()}) + "\n")
    sys.stdout.flush()
    await over.wait()
    server.close()


def _watch(descriptor: int, over: asyncio.Event) -> None:
    if not os.read(descriptor, 4096):
        asyncio.get_running_loop().remove_reader(descriptor)
        over.set()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Nothing is left to be tidied up; taking the interpreter apart would keep whoever waits for this end.
    os._exit(code)
