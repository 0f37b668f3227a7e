"""The SDK is imported without its types, which are its own all the same, and while `httpx` is half imported."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from tests.governor.provider import Handler, Provide

_LOOK = """
import json, sys
{first}
import openai
loaded = len([name for name in sys.modules if name.startswith("openai.types")])
from openai.types import Batch, CompletionUsage
from openai.types.chat import ChatCompletionChunk, completion_create_params
from openai.types.responses import Response
import openai.types.responses.response
embedding = openai.types.embedding.Embedding
client = openai.OpenAI(api_key="k")
print(json.dumps({{
    "loaded": loaded,
    "same": Response is openai.types.responses.response.Response,
    "whole": len(set(dir(openai.types)) & {{"Batch", "FileObject", "CompletionUsage", "VectorStore"}}),
    "through": embedding is openai.types.Embedding and openai.types.batch.Batch is Batch,
    "missing": hasattr(openai.types, "NoSuchType"),
    "usage": CompletionUsage(prompt_tokens=1, completion_tokens=2, total_tokens=3).total_tokens,
    "params": completion_create_params.__name__,
    "resources": [type(client.responses).__name__, type(client.embeddings).__name__, type(client.batches).__name__],
}}))
"""

#: Stands for the real one, whose import takes 60 ms: this one takes until it is told to go on.
_SLOW_HTTPX = "import builtins\nbuiltins.begun.set()\nbuiltins.go_on.wait(20)\n"

_CALL_BESIDE_AN_IMPORT = """
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


def _look(first: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", _LOOK.format(first=first)], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_the_types_are_loaded_on_demand_and_are_the_sdks_own() -> None:
    """All that the SDK offers is there; most of it has not been imported."""
    plain, lean = _look(""), _look("import agentao_gov.governor")

    assert lean["loaded"] < plain["loaded"] / 3
    del lean["loaded"], plain["loaded"]
    assert lean == plain
    assert lean["same"]
    assert lean["whole"] == 4
    assert lean["through"]


def test_an_sdk_that_is_there_already_is_left_alone() -> None:
    """Who embeds the library may have imported it."""
    found = _look("import openai, agentao_gov.governor")

    assert found["loaded"] == _look("")["loaded"]


def test_an_sdk_in_an_archive_is_loaded_as_it_is(tmp_path: Path) -> None:
    """Only files in a directory can be read as source; whatever else holds the SDK keeps its own loader."""
    with zipfile.ZipFile(tmp_path / "sdk.zip", "w") as archive:
        archive.writestr("openai/__init__.py", "from . import types")
        archive.writestr("openai/types/__init__.py", "from .batch import Batch as Batch")
        archive.writestr("openai/types/batch.py", "class Batch: pass")
    look = f"import sys; sys.path.insert(0, {str(tmp_path / 'sdk.zip')!r})\n"
    look += "from agentao_gov.governor import sdk_import\nimport openai\nprint(openai.types.Batch.__module__)"

    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)

    assert (done.stdout, done.stderr) == ("openai.types.batch\n", "")


def test_a_call_beside_the_first_import_of_httpx_succeeds(tmp_path: Path, provide: Provide) -> None:
    """agentao imports it when a call fails or an MCP server starts; the SDK looks at it before every request."""
    (tmp_path / "httpx.py").write_text(_SLOW_HTTPX)
    whole = {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [whole]})

    def answer(handler: Handler, _: object) -> None:
        handler.send(200, "application/json", body.encode())

    command = [sys.executable, "-c", _CALL_BESIDE_AN_IMPORT, str(tmp_path), provide(answer).base_url]

    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)

    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
