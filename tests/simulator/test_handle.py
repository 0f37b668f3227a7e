"""The simulator as a process: it dies with whoever started it, and real agentao can talk to it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from agentao import Agentao
from agentao.host import CancellationToken
from agentao.mcp import InMemoryMCPRegistry
from agentao.transport import SdkTransport

from agentao_gov.simulator import Simulator

PARENT = """
import sys
from agentao_gov.simulator import start_simulator
running = start_simulator()
print(running.pid, flush=True)
sys.stdin.read()
"""


def test_it_dies_with_a_parent_that_was_killed() -> None:
    """The lifeline is the parent's end of a pipe; nobody has to clean up."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    descriptor = os.pidfd_open(int(parent.stdout.readline()))

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    ended, _, _ = select.select([descriptor], [], [], 10)

    os.close(descriptor)
    parent.stdin.close()
    parent.stdout.close()
    assert ended


def _agent(simulator: Simulator, directory: Path, **options: Any) -> Agentao:
    return Agentao(
        working_directory=directory,
        api_key="k",
        base_url=simulator.base_url,
        model="simulated",
        transport=SdkTransport(confirm_tool=lambda *_: False),
        permission_mode="read-only",
        enabled_tools=("read_file", "glob"),
        mcp_registry=InMemoryMCPRegistry(),
        project_instructions="",
        **options,
    )


def test_agentao_reads_a_file_and_answers(simulator: Simulator, tmp_path: Path) -> None:
    """A real turn with a real tool, from a plain question."""
    (tmp_path / "notes.txt").write_text("Limits are kind.\n")
    agent = _agent(simulator, tmp_path)

    answer = agent.chat("Please read notes.txt", cancellation_token=CancellationToken())
    agent.close()

    records = simulator.truth().requests
    assert "Limits are kind." in answer
    assert [record.tool_calls for record in records] == [("read_file",), ()]
    assert agent.llm.usage_snapshot()["prompt_tokens"] == sum(record.prompt_tokens for record in records)


def test_agentao_counts_what_the_truth_counts(simulator: Simulator, tmp_path: Path) -> None:
    """Over several turns and a tool loop, to the token."""
    agent = _agent(simulator, tmp_path)
    loop = '@sim {"tool": {"name": "glob", "args": {"pattern": "*.{round}"}, "rounds": 3}, "answer_tokens": 40}'

    agent.chat(f"go\n{loop}", cancellation_token=CancellationToken())
    agent.chat("and again", cancellation_token=CancellationToken())
    agent.close()

    total = simulator.truth().total
    snapshot = agent.llm.usage_snapshot()
    assert total.calls == 5
    assert (snapshot["prompt_tokens"], snapshot["completion_tokens"]) == (total.prompt_tokens, total.completion_tokens)
