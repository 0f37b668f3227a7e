"""The embedded model's own process: `python -m agentao_gov.simulator.embedded_server GGUF CONTEXT_TOKENS`.

Writes one line of JSON with its port when it is ready, and ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from urllib.parse import urlsplit

# A prompt is read in pieces of this size, each a step of the progress line; 2,048 would show none for seconds.
BATCH_TOKENS = 256


def main() -> int:
    """Serves until standard input ends."""
    path, context_tokens = sys.argv[1], int(sys.argv[2])
    threading.Thread(target=_die_with_parent, name="lifeline", daemon=True).start()
    # The library may write to standard output, which is the parent's pipe.
    report = os.dup(1)
    os.dup2(2, 1)
    import xllamacpp

    server = xllamacpp.Server(_parameters(xllamacpp, path, context_tokens))
    port = urlsplit(server.listening_address).port
    os.write(report, json.dumps({"port": port}).encode() + b"\n")
    threading.Event().wait()
    return 0


def _parameters(xllamacpp: object, path: str, context_tokens: int) -> object:
    parameters = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    parameters.model.path = path
    parameters.n_ctx = context_tokens
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    # One at a time: two halves of the context would not hold agentao's prompt and a long answer.
    parameters.n_parallel = 1
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.endpoint_slots = True
    parameters.ui = False
    # Web pages in the user's browser have no business here.
    parameters.cors_origins = "http://127.0.0.1"
    parameters.warmup = False
    parameters.verbosity = 0
    # Where it runs: a container's share may be less than the machine's cores.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
    # The same answer to the same question: at its default of 0.8 a small model wanders, and now and then never ends.
    parameters.sampling.temp = 0.0
    parameters.sampling.seed = 42
    parameters.sampling.penalty_repeat = 1.1
    return parameters


def _die_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
