"""Starts workers on a shared ledger."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentao_gov.budget import RedisStore, SqliteStore, Store
from agentao_gov.simulator.tokens import prompt_tokens
from tests.budget.worker import QUESTION

PROMPT_TOKENS = prompt_tokens([{"role": "user", "content": QUESTION}], [])


def start(plan: dict[str, Any], program: str = "tests.budget.worker") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", program, json.dumps(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def open_at(place: dict[str, str]) -> Store:
    if place["name"]:
        return RedisStore(place["store"], name=place["name"])
    return SqliteStore(Path(place["store"]))
