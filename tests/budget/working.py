"""How a process that a test started begins and ends: a plan in, everyone at once, one JSON line out."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["all_at_once", "answer"]


def all_at_once(threads: Sequence[threading.Thread]) -> None:
    """Starts them at the parent's word, which comes when all its workers have said that they are there; waits."""
    print("ready", flush=True)
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Does what the first argument asks for."""
    print(json.dumps(work(json.loads(sys.argv[1]))), flush=True)
