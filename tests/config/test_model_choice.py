"""Which model is used, and how a profile is made to fit it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agentao_gov.config import (
    ModelChoice,
    ModelFlags,
    Overrides,
    ResolvedDeployment,
    ResolvedProfile,
    fit_to_model,
    load_deployment,
    load_profile,
    resolve_model,
)
from agentao_gov.config.model import context_cap, known_model
from agentao_gov.errors import ConfigError, UsageError

_ENVIRON = {"OPENAI_API_KEY": "sk-env", "OPENAI_BASE_URL": "http://env/v1", "OPENAI_MODEL": "env-model"}


def _profile(tmp_path: Path, model: str) -> ResolvedProfile:
    path = tmp_path / "mine.toml"
    path.write_text(f"[model]\n{model}\n")
    return load_profile(path)


def _deployment(tmp_path: Path, model: str) -> ResolvedDeployment:
    path = tmp_path / "agentao-gov.toml"
    path.write_text(f"[model]\n{model}\n")
    return load_deployment(path, environ={})


def test_the_strongest_place_names_the_model(tmp_path: Path) -> None:
    """Flags, the profile, the deployment, agentao's variables, the embedded model."""
    profile = _profile(tmp_path, 'name = "profile-model"')
    deployment = _deployment(tmp_path, 'name = "file-model"')

    def choose(**given: object) -> tuple[str, str]:
        choice = resolve_model(**{"environ": _ENVIRON, **given})  # type: ignore[arg-type]
        return choice.name, choice.source

    assert choose(flags=ModelFlags(model="x"), profile=profile, deployment=deployment) == ("x", "flag --model")
    assert choose(profile=profile, deployment=deployment) == ("profile-model", "profile mine")
    assert choose(deployment=deployment) == ("file-model", "file agentao-gov.toml")
    assert choose() == ("env-model", "environment OPENAI_MODEL")
    assert choose(environ={}) == ("embedded", "default")


def test_each_part_comes_from_the_first_place_that_states_it(tmp_path: Path) -> None:
    """A model's name in the profile, its address and key from the environment."""
    choice = resolve_model(profile=_profile(tmp_path, 'name = "gpt-4.1"'), environ=_ENVIRON)

    assert (choice.name, choice.base_url, choice.api_key.get_secret_value()) == ("gpt-4.1", "http://env/v1", "sk-env")
    assert choice.context_window == 1_047_576


@pytest.mark.parametrize("kind", ["embedded", "simulated"])
def test_a_local_model_needs_nothing_else(kind: str) -> None:
    """No key of the environment travels to it."""
    choice = resolve_model(ModelFlags(model=kind), environ=_ENVIRON)

    assert (choice.kind, choice.name, choice.base_url) == (kind, kind, "")
    assert "sk-env" not in choice.api_key.get_secret_value()


def test_a_server_of_ones_own_needs_no_key() -> None:
    """Ollama and vLLM ask for none."""
    choice = resolve_model(ModelFlags(model="llama", base_url="http://127.0.0.1:11434/v1/"), environ={})

    assert choice.base_url == "http://127.0.0.1:11434/v1"
    assert choice.api_key.get_secret_value()


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (ModelFlags(model="gpt-4.1"), ConfigError, "need an API key"),
        (ModelFlags(model="x", api_key_env="NOPE"), ConfigError, "NOPE"),
        (ModelFlags(model="x", base_url="localhost:8000"), UsageError, "not an http"),
        (ModelFlags(model="x", base_url="http://"), UsageError, "not an http"),
        (ModelFlags(model="x", base_url="http://h:99999/"), UsageError, "not an http"),
        (ModelFlags(model="x", base_url="file:///etc/passwd"), UsageError, "not an http"),
    ],
)
def test_a_model_that_cannot_be_reached_is_refused_at_the_start(
    flags: ModelFlags, error: type[Exception], message: str
) -> None:
    """Without a key, or with an address that is none."""
    with pytest.raises(error, match=message):
        resolve_model(flags, environ={})


def test_in_ci_a_model_has_to_be_chosen() -> None:
    """A gate must not rest on a default."""
    with pytest.raises(ConfigError, match="CI is set"):
        resolve_model(environ={"CI": "true"})


@pytest.mark.parametrize("key", ["sk-env\n", " sk-env\r\n", "sk-env"])
def test_a_key_loses_the_blanks_around_it(key: str) -> None:
    """Secrets from files end with a line's end, and the header that it made was refused as a wrong address."""
    choice = resolve_model(environ={**_ENVIRON, "OPENAI_API_KEY": key})

    assert choice.api_key.get_secret_value() == "sk-env"


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-ключ"])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(key: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigError, match="OPENAI_API_KEY has characters") as refused:
        resolve_model(environ={**_ENVIRON, "OPENAI_API_KEY": key})

    assert key not in str(refused.value)


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    """Neither in repr nor in str: choices are logged."""
    choice = resolve_model(environ=_ENVIRON)

    assert "sk-env" not in repr(choice) + str(choice)


@pytest.mark.parametrize(
    ("name", "window", "recommended"),
    [
        ("gpt-4.1", 1_047_576, (100_000, 128_000)),
        ("gpt-4.1-mini", 1_047_576, (4_000, 16_000)),
        ("openai/gpt-4o", 128_000, (64_000, 102_400)),
        ("gpt-5.4", None, (100_000, 128_000)),
        ("claude-sonnet-4-20250514", 200_000, (150_000, 200_000)),
        ("gemini-2.5-pro", 1_048_576, (500_000, 800_000)),
    ],
)
def test_the_table_knows_models(name: str, window: int | None, recommended: tuple[int, int]) -> None:
    """The first row that matches, whatever the provider's prefix."""
    known = known_model(name)

    assert known is not None
    assert known.window == window
    assert (known.recommended_min, known.recommended_max) == recommended


def test_an_unknown_model_has_no_window() -> None:
    """Nothing is guessed."""
    assert known_model("my-own-model") is None
    assert context_cap(1000) == 800


def _choice(window: int | None, *, from_flag: bool = False, kind: str = "remote") -> ModelChoice:
    from pydantic import SecretStr

    return ModelChoice(kind, "m", "http://h", SecretStr("k"), window, "test", from_flag)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [_choice(8192, from_flag=True), _choice(8192, kind="embedded")])
def test_a_profile_is_fitted_to_a_model_that_a_flag_chose(choice: ModelChoice) -> None:
    """`--model embedded` needs no second profile; the warning says what moved."""
    fitted = fit_to_model(load_profile("qa"), choice)

    assert fitted.profile.limits.max_context_tokens == 6553
    assert fitted.profile.limits.max_output_tokens == 2048
    assert "64,000 is above 6,553" in fitted.findings[-1].message


def _small(kind: str = "embedded") -> ModelChoice:
    return dataclasses.replace(_choice(8192, kind=kind, from_flag=True), name="SmolLM2-135M-Instruct")


def test_a_model_that_ends_soon_or_never_gets_a_lower_output_cap() -> None:
    """The table says so; a rambling answer of 2,048 tokens took minutes and was no answer."""
    fitted = fit_to_model(load_profile("qa"), _small())

    assert fitted.profile.limits.max_output_tokens == 512
    assert "lowered to 512" in fitted.findings[-1].message


def test_who_asks_for_another_output_cap_gets_it() -> None:
    """A flag is stronger than the table."""
    overrides = Overrides(sets=("limits.max_output_tokens=1000",))

    fitted = fit_to_model(load_profile("qa", overrides=overrides), _small())

    assert fitted.profile.limits.max_output_tokens == 1000


def test_files_that_disagree_are_an_error(tmp_path: Path) -> None:
    """The user's profile asks for what the deployment's model does not have; the hint says how far to go down."""
    (tmp_path / "mine.toml").write_text("[limits]\nmax_context_tokens = 64_000\n")

    with pytest.raises(ConfigError, match="64,000 is above 6,553, 80 % of the window of 8,192") as caught:
        fit_to_model(load_profile(tmp_path / "mine.toml"), _choice(8192))

    assert "6553 or less" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", 'extends = "research"\n'])
def test_what_was_shipped_is_fitted_to_the_deployments_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A `[model] context_window` in the deployment must not make every shipped profile, or its heir, an error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(text)

    fitted = [fit_to_model(load_profile(name), _choice(32_000)) for name in ("code", tmp_path / "mine.toml")]

    assert [profile.profile.limits.max_context_tokens for profile in fitted] == [25_600, 25_600]
    assert all(profile.adjustments for profile in fitted)


def test_a_context_flag_above_the_window_is_wrong_usage() -> None:
    """Nobody is given less than they asked for in so many words."""
    overrides = Overrides(flags={"limits.max_context_tokens": ("--max-context", "7k")})

    with pytest.raises(UsageError, match="--max-context"):
        fit_to_model(load_profile("qa", overrides=overrides), _choice(8192, from_flag=True))


@pytest.mark.parametrize("window", [None, 80_000])
def test_a_profile_that_fits_is_left_alone(window: int | None) -> None:
    """At exactly 80 %, and where no window is known."""
    profile = load_profile("qa")

    assert fit_to_model(profile, _choice(window)) is profile


def test_the_wire_comes_from_the_first_place_that_states_it(tmp_path: Path) -> None:
    """A deployment's endpoint is spoken to in its own way, also by a model that a flag names."""
    deployment = _deployment(tmp_path, 'base_url = "http://gateway/v1"\napi_format = "openai-responses"')

    assert resolve_model(ModelFlags(model="m"), deployment=deployment, environ={}).api_format == "openai-responses"
    assert resolve_model(environ=_ENVIRON).api_format == "openai-completions"
    simulated = resolve_model(ModelFlags(model="simulated"), deployment=deployment, environ={})
    assert (simulated.kind, simulated.api_format) == ("simulated", "openai-responses")
    embedded = resolve_model(ModelFlags(model="embedded"), deployment=deployment, environ={})
    assert embedded.api_format == "openai-completions"


def test_openai_s_key_never_goes_to_anthropic(tmp_path: Path) -> None:
    """Where a profile asks for Anthropic's own wire, what OPENAI_* say is about somebody else."""
    profile = _profile(tmp_path, 'name = "claude-sonnet-5"\napi_format = "anthropic-messages"')

    choice = resolve_model(profile=profile, environ={**_ENVIRON, "ANTHROPIC_API_KEY": "sk-ant"})
    with pytest.raises(ConfigError, match="Anthropic's models need an API key") as failure:
        resolve_model(profile=profile, environ=_ENVIRON)

    assert (choice.base_url, choice.api_key.get_secret_value()) == ("https://api.anthropic.com/v1", "sk-ant")
    assert "ANTHROPIC_API_KEY" in str(failure.value.hint)


def test_an_unknown_wire_is_refused(tmp_path: Path) -> None:
    """A misspelt one must not be spoken to in another way."""
    with pytest.raises(ConfigError, match="api_format"):
        _profile(tmp_path, 'api_format = "anthropic"')


OPTIONS = """name = "m"
base_url = "http://one/v1"
temperature = 0.2
thinking = "medium"
headers = { "X-Team" = "${TEAM}" }
extra_body = { top_k = 5 }
"""


def test_options_have_their_values_from_the_environment(tmp_path: Path) -> None:
    """A reference in a header is a value at the model and still a reference in the file's settings."""
    profile = _profile(tmp_path, OPTIONS)

    options = resolve_model(profile=profile, environ={"TEAM": "search"}).options

    assert (options.temperature, options.thinking) == (0.2, "medium")
    assert (dict(options.headers), dict(options.extra_body)) == ({"X-Team": "search"}, {"top_k": 5})
    assert profile.profile.model is not None
    assert profile.profile.model.headers == {"X-Team": "${TEAM}"}
    assert "search" not in repr(options)


def test_a_header_s_variable_that_is_not_set_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Otherwise an empty token would be sent, and the provider's refusal would say nothing about it."""
    with pytest.raises(ConfigError, match=r"headers\.X-Team names the environment variable TEAM"):
        resolve_model(profile=_profile(tmp_path, OPTIONS), environ={})


def test_headers_go_to_the_address_they_were_written_for(tmp_path: Path) -> None:
    """A flag that names another address does not take a token there."""
    profile = _profile(tmp_path, OPTIONS)

    choice = resolve_model(ModelFlags(base_url="http://two/v1"), profile=profile, environ={"TEAM": "search"})

    assert (choice.base_url, dict(choice.options.headers)) == ("http://two/v1", {})


@pytest.mark.parametrize(
    ("profile", "deployment", "sent"),
    [
        ('headers = { "X-Team" = "a" }', 'base_url = "http://one/v1"', {"X-Team": "a"}),
        ('headers = { "X-Team" = "a" }', 'headers = { "x-team" = "b", "X-Org" = "c" }', {"X-Team": "a", "X-Org": "c"}),
        ('base_url = "http://two/v1"', 'base_url = "http://one/v1"\nheaders = { "X-Org" = "c" }', {}),
        ('name = "m"', 'base_url = "http://one/v1"\nheaders = { "X-Org" = "c" }', {"X-Org": "c"}),
    ],
)
def test_headers_of_a_place_without_an_address_go_to_the_one_that_holds(
    tmp_path: Path, profile: str, deployment: str, sent: dict[str, str]
) -> None:
    """A profile's own headers were dropped without a word where the deployment or the environment has the address."""
    file = tmp_path / "agentao-gov.toml"
    file.write_text(f"[model]\n{deployment}\n")
    environ = {"OPENAI_BASE_URL": "http://three/v1", "OPENAI_API_KEY": "k"}

    choice = resolve_model(
        profile=_profile(tmp_path, profile), deployment=load_deployment(file, environ=environ), environ=environ
    )

    assert dict(choice.options.headers) == sent


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("extra_body = { max_tokens = 9 }", r"extra_body\.max_tokens: is decided by the governor"),
        ("extra_body = { n = 3 }", r"extra_body\.n: is decided by the governor"),
        ('headers = { "X Team" = "a" }', "is not the name of an HTTP header"),
        (r'headers = { "X-Team" = "m\u00fcnchen" }', "has characters that no HTTP header takes"),
        ('api_format = "anthropic-messages"\nthinking = "minimal"', "'minimal' is none of Anthropic's"),
        ("temperature = 3.0", "temperature"),
    ],
)
def test_options_that_would_pass_the_limits_by_are_refused(tmp_path: Path, model: str, said: str) -> None:
    """What spends tokens is reserved, and so nobody's to set beside the reservation."""
    with pytest.raises(ConfigError, match=said):
        _profile(tmp_path, model)
