"""A module that somebody is importing at this moment is no reason for a turn to fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.governor.provider import Handler, Provide

#: Stands for the real one, whose import takes 60 ms: this one takes until it is told to go on.
SLOW = "import builtins\nbuiltins.begun.set()\nbuiltins.go_on.wait(20)\n"

PROGRAM = """
import builtins, sys, threading
from agentao_gov.governor.http import HttpClient, abortable, AbortScope
client = HttpClient()
sys.modules.pop("httpx", None)
sys.path.insert(0, sys.argv[1])
builtins.begun, builtins.go_on = threading.Event(), threading.Event()
thread = threading.Thread(target=__import__, args=("httpx",), daemon=True)
thread.start()
assert builtins.begun.wait(20)
with abortable(AbortScope()):
    answer = client.endpoint(sys.argv[2], "key").chat.completions.create(model="m", messages=[])
builtins.go_on.set()
thread.join()
print(answer.choices[0].message.content)
"""


def test_a_call_beside_the_first_import_of_httpx_succeeds(tmp_path: Path, provide: Provide) -> None:
    """agentao imports it when a call fails or an MCP server starts; the SDK looks at it before every request."""
    (tmp_path / "httpx.py").write_text(SLOW)
    whole = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [whole]})

    def answer(handler: Handler, _: object) -> None:
        handler.send(200, "application/json", body.encode())

    command = [sys.executable, "-c", PROGRAM, str(tmp_path), provide(answer).base_url]

    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)

    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
