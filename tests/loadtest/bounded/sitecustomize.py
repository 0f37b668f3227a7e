"""Bounds the processes of a real load test, for tests: with this folder on PYTHONPATH and BOUNDED set to a JSON object.

    {"serve": {"files": 120, "cores": [1]}, "locust": {"cores": [0]}, "simulator": {"cores": [0]}}

The service, the load generator and the model are told apart by their command lines, and each gets its own bounds: what
an operator would do with `prlimit` and `taskset` if the command did not start them all.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

MARKS = {"serve": "serve", "locust": "locust", "simulator": "agentao_gov.simulator"}


def _bound(files: int | None = None, cores: list[int] | None = None) -> None:
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if cores is not None:
        os.sched_setaffinity(0, cores)


if wanted := os.environ.get("BOUNDED"):
    bounds: dict[str, dict[str, Any]] = json.loads(wanted)
    for who, own in bounds.items():
        if any(argument == MARKS[who] or argument.startswith(f"{MARKS[who]}.") for argument in sys.orig_argv):
            _bound(**own)
