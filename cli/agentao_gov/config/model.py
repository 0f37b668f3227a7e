"""Which model a turn runs on: flags, the profile, the deployment, OPENAI_*, else the embedded one."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import RANK_DEFAULT, RANK_FILE, Layers
from agentao_gov.config.profile import ApiFormat, ModelSettings
from agentao_gov.config.resolved import ResolvedDeployment, ResolvedProfile
from agentao_gov.config.validate import finding
from agentao_gov.errors import ConfigError, UsageError

# ── what can be said of a `[model]` table before anything is sent ─────────────────────────────────

URL_FORM = "It looks like https://api.openai.com/v1 or http://127.0.0.1:8000/v1."
#: How the keys of providers begin; and hexadecimal or long mixtures of cases and digits, which no variable is called.
_KEY = re.compile(
    r"(sk|pk|rk|gsk|hf|xai|AIza|ya29|ghp)[-_A-Za-z0-9.]{16,}$|[0-9a-f]{32,}$|(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])\S{20,}$"
)


#: Fields of a request by which tokens would be spent that nobody reserved, or that are no option but the request.
_GOVERNED_FIELDS = frozenset(
    {
        *("best_of", "input", "max_completion_tokens", "max_output_tokens", "max_tokens", "messages", "model"),
        *("n", "stream", "stream_options", "system", "tool_choice", "tools"),
    }
)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ANTHROPIC_LEVELS = ("off", "low", "medium", "high", "xhigh", "max")
#: `$${VAR}` is the text `${VAR}`; anything else with a dollar is itself.
_REFERENCE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")


def expand(text: str, environ: Mapping[str, str], missing: list[str]) -> str:
    """`text` with the value in `environ` for each `${VAR}`; a variable that is not set is added to `missing`."""

    def replaced(found: re.Match[str]) -> str:
        if found["escaped"]:
            return "${"
        if found["name"] not in environ:
            missing.append(found["name"])
        return environ.get(found["name"], "")

    return _REFERENCE.sub(replaced, text)


def looks_like_a_key(text: str) -> bool:
    """Whether somebody wrote the key itself where the name of its variable belongs."""
    return not text.isidentifier() or bool(_KEY.match(text))


def is_http_url(url: str) -> bool:
    """Whether a request could be sent there."""
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_ok and not re.search(r"\s", url)


def shown_url(url: str) -> str:
    """The address for a message, without a user name and password in it."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def model_findings(settings: ModelSettings | None, layers: Layers) -> Iterator[Finding]:
    """The errors of a `[model]` table. A key is never repeated."""
    if settings is None:
        return
    if settings.base_url is not None and not is_http_url(settings.base_url):
        text = f"{shown_url(settings.base_url)!r} is not an http(s) address. {URL_FORM.rstrip('.')}"
        yield finding(layers, "model.base_url", text, error=True)
    if settings.api_key_env is not None and looks_like_a_key(settings.api_key_env):
        text = "is not the name of an environment variable; name the variable that holds the key, never the key"
        yield finding(layers, "model.api_key_env", text, error=True)
    if settings.name is not None and not settings.name.strip():
        yield finding(layers, "model.name", "must not be empty", error=True)
    yield from _option_findings(settings, layers)


def _option_findings(settings: ModelSettings, layers: Layers) -> Iterator[Finding]:
    for name in settings.extra_body:
        if name in _GOVERNED_FIELDS:
            text = "is decided by the governor for each request, and cannot be set beside it"
            yield finding(layers, f"model.extra_body.{name}", text, error=True)
    for name, value in settings.headers.items():
        if not _HEADER.fullmatch(name):
            yield finding(layers, f"model.headers.{name}", "is not the name of an HTTP header", error=True)
        if not (value.isascii() and value.isprintable()):
            yield finding(layers, f"model.headers.{name}", "has characters that no HTTP header takes", error=True)
    level = settings.thinking
    if settings.api_format == "anthropic-messages" and level and level.lower() not in _ANTHROPIC_LEVELS:
        text = f"{level!r} is none of Anthropic's: {', '.join(_ANTHROPIC_LEVELS)}"
        yield finding(layers, "model.thinking", text, error=True)


# ── known models: `models.toml` ───────────────────────────────────────────────────────────────────

#: The summariser needs room for its own prompt and answer: a fifth of the window stays free.
_USABLE_PERCENT = 80


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One row of the table. Tokens."""

    patterns: tuple[str, ...]
    model_class: str
    #: None: the provider states none that we know of.
    window: int | None
    recommended_min: int
    recommended_max: int
    #: The most that one answer may be; None: what the profile says.
    output_max: int | None = None


def context_cap(window: int) -> int:
    """The most that `max_context_tokens` may be in a window of this size."""
    return window * _USABLE_PERCENT // 100


def known_model(name: str) -> KnownModel | None:
    """The first row that matches, ignoring case and a provider prefix."""
    plain = name.rpartition("/")[2].lower()
    return next((row for row in _table() if any(fnmatchcase(plain, pattern) for pattern in row.patterns)), None)


@cache
def _table() -> tuple[KnownModel, ...]:
    with (Path(__file__).parent / "models.toml").open("rb") as file:
        rows = tomllib.load(file)["models"]
    return tuple(_row(row) for row in rows)


def _row(row: dict[str, Any]) -> KnownModel:
    least, most = row["recommended"]
    return KnownModel(tuple(row["match"]), row["class"], row.get("window"), least, most, row.get("output"))


# ── which model is used ───────────────────────────────────────────────────────────────────────────

_OPENAI_URL = "https://api.openai.com/v1"
_ANTHROPIC_URL = "https://api.anthropic.com/v1"
_ANTHROPIC_KEY = "ANTHROPIC_API_KEY"
_DEFAULT_NAME = "gpt-4.1"
# OpenAI's SDK refuses an empty key; servers on one's own machine ask for none.
_NO_KEY = "not-needed"
_LOCAL: dict[str, Literal["embedded", "simulated"]] = {"embedded": "embedded", "simulated": "simulated"}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is asked, beside its name, address and key."""

    #: None: the provider's default.
    temperature: float | None = None
    #: A level; None: the provider's default.
    thinking: str | None = None
    #: References have their values here, which may be secrets.
    headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """One model and how to reach it. `base_url` of a local kind is empty until its process is started."""

    kind: Literal["remote", "embedded", "simulated"]
    name: str
    base_url: str
    api_key: SecretStr
    #: Tokens; None where nobody knows.
    context_window: int | None
    #: Where the choice came from, `flag --model`.
    source: str
    #: Whether a flag chose it: then a profile's context cap is fitted to it instead of refused.
    from_flag: bool = False
    #: The wire: how the endpoint is spoken to.
    api_format: ApiFormat = "openai-completions"
    options: ModelOptions = ModelOptions()


@dataclass(frozen=True, slots=True)
class ModelFlags:
    """`--model`, `--base-url`, `--api-key-env`."""

    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None


def resolve_model(
    flags: ModelFlags | None = None,
    *,
    profile: ResolvedProfile | None = None,
    deployment: ResolvedDeployment | None = None,
    environ: Mapping[str, str] | None = None,
) -> ModelChoice:
    """The model to use; each of name, address and key comes from the first place that states it.

    The places, in order: `flags` of the command line, `profile` with its own `[model]`, `deployment` with its own, the
    variables of `environ` (None: this process's), the embedded model. Raises ConfigError where a key is named but not
    set, an address is no address, or nothing is configured in CI.
    """
    environ = os.environ if environ is None else environ
    places = list(_places(flags or ModelFlags(), profile, deployment, environ))
    if not places:
        if environ.get("CI", "").lower() in {"1", "true"}:
            raise ConfigError(
                "No model is configured, and CI is set: a gate must not rest on a model chosen by default.",
                hint="Give --model simulated, --model embedded, or --model with --base-url.",
            )
        return ModelChoice("embedded", "embedded", "", SecretStr(_NO_KEY), None, "default")
    named = next(((source, place) for source, place in places if place.name), None)
    source, settings = named or places[0]
    name = settings.name or _DEFAULT_NAME
    from_flag = source.startswith("flag")
    api_format: ApiFormat = next((p.api_format for _, p in places if p.api_format), "openai-completions")
    if name in _LOCAL:
        # The embedded model's server knows Chat Completions alone.
        spoken: ApiFormat = api_format if name == "simulated" else "openai-completions"
        key = SecretStr(_NO_KEY)
        window = settings.context_window
        return ModelChoice(_LOCAL[name], name, "", key, window, source, from_flag, spoken, _options(places, environ))
    default_url = _OPENAI_URL
    configured = [(s, p) for s, p in places if not s.startswith("environment OPENAI_")]
    if api_format == "anthropic-messages" and not any(p.base_url for _, p in configured):
        # What OPENAI_* say is for another provider, whose key must not go to Anthropic.
        places, default_url = configured, _ANTHROPIC_URL
    base_url = _valid_url(*next(((p.base_url, s) for s, p in places if p.base_url), (default_url, "default")))
    known = known_model(name)
    window = settings.context_window or (known.window if known else None)
    key = _key(name, places, base_url, environ)
    options = _options(places, environ)
    return ModelChoice("remote", name, base_url, key, window, source, from_flag, api_format, options)


def _options(places: list[tuple[str, ModelSettings]], environ: Mapping[str, str]) -> ModelOptions:
    """Each option from the first place that states it, headers from all down to the one that states the address.

    Who names no address writes headers for whichever holds; what a header tells one provider is no other's business.
    """
    thinking = next((p.thinking for _, p in places if p.thinking), None)
    stated: dict[str, tuple[str, str]] = {}
    for _, place in places:
        for name, text in place.headers.items():
            # HTTP's names are alike in either case.
            stated.setdefault(name.lower(), (name, text))
        if place.base_url:
            break
    headers: dict[str, str] = {}
    for name, text in stated.values():
        missing: list[str] = []
        headers[name] = expand(text, environ, missing).strip()
        if missing:
            raise ConfigError(
                f"[model] headers.{name} names the environment variable {missing[0]}, which is not set.",
                hint=f"Set it: export {missing[0]}=...",
            )
        if not (headers[name].isascii() and headers[name].isprintable()):
            raise ConfigError(
                f"[model] headers.{name} has characters that no HTTP header takes.",
                hint="A header's value is printable ASCII. Check the value, and the variables that it names.",
            )
    return ModelOptions(
        temperature=next((p.temperature for _, p in places if p.temperature is not None), None),
        thinking=None if thinking is None or thinking.lower() == "off" else thinking,
        headers=headers,
        extra_body=next((p.extra_body for _, p in places if p.extra_body), {}),
    )


def _places(
    flags: ModelFlags,
    profile: ResolvedProfile | None,
    deployment: ResolvedDeployment | None,
    environ: Mapping[str, str],
) -> Iterator[tuple[str, ModelSettings]]:
    """Every place that says something about the model, strongest first."""
    for attribute, key in (("model", "name"), ("base_url", "base_url"), ("api_key_env", "api_key_env")):
        if value := getattr(flags, attribute):
            yield f"flag --{attribute.replace('_', '-')}", ModelSettings(**{key: value})
    if profile is not None and (settings := profile.profile.model) is not None:
        yield _source(profile.sources, f"profile {profile.profile.name}"), settings
    if deployment is not None and (settings := deployment.deployment.model) is not None:
        yield _source(deployment.sources, "file agentao-gov.toml"), settings
    variables = [v for v in ("OPENAI_MODEL", "OPENAI_BASE_URL", "OPENAI_API_KEY") if environ.get(v)]
    if variables:
        yield (
            f"environment {variables[0]}",
            ModelSettings(
                name=environ.get("OPENAI_MODEL") or None,
                base_url=environ.get("OPENAI_BASE_URL") or None,
                api_key_env="OPENAI_API_KEY" if environ.get("OPENAI_API_KEY") else None,
            ),
        )


def _source(sources: Mapping[str, str], otherwise: str) -> str:
    for key in ("model.name", "model.base_url"):
        if sources.get(key, "default") != "default":
            return sources[key]
    return otherwise


def _key(name: str, places: list[tuple[str, ModelSettings]], base_url: str, environ: Mapping[str, str]) -> SecretStr:
    variable, source = next(((p.api_key_env, s) for s, p in places if p.api_key_env), (None, ""))
    if variable is not None:
        # A secret that was made from a file ends with its line's end, which no header takes.
        if key := environ.get(variable, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(f"The key in {variable} has characters that no HTTP header takes ({source}).")
            return SecretStr(key)
        if looks_like_a_key(variable):
            # Most likely the key itself: it must not be repeated into a terminal's history or a CI log.
            raise ConfigError(
                f"api_key_env is not the name of an environment variable ({source}).",
                hint="Name the variable that holds the key, never the key: --api-key-env OPENAI_API_KEY.",
            )
        raise ConfigError(
            f"The environment variable {variable}, which should hold the model's API key, is not set ({source}).",
            hint=f"Set it: export {variable}=...",
        )
    if base_url == _ANTHROPIC_URL:
        if key := environ.get(_ANTHROPIC_KEY, "").strip():
            return SecretStr(key)
        raise ConfigError("Anthropic's models need an API key.", hint=f"Set {_ANTHROPIC_KEY}, or api_key_env.")
    if base_url == _OPENAI_URL:
        near = difflib.get_close_matches(name.lower(), _LOCAL, n=1)
        raise ConfigError(
            "OpenAI's models need an API key.",
            hint=f"Did you mean --model {near[0]}?"
            if near
            else "Set OPENAI_API_KEY, or give --base-url for another provider, or --model embedded.",
        )
    return SecretStr(_NO_KEY)


def _valid_url(url: str, source: str) -> str:
    if not is_http_url(url):
        wrong = UsageError if source.startswith("flag") else ConfigError
        raise wrong(
            f"The model's base_url {shown_url(url)!r} is not an http(s) address ({source}).",
            hint=URL_FORM,
        )
    return url.rstrip("/")


# ── a profile made to fit ─────────────────────────────────────────────────────────────────────────


def fit_to_model(profile: ResolvedProfile, model: ModelChoice) -> ResolvedProfile:
    """`profile` with its context cap and output cap inside the window of `model`.

    A model chosen by a flag, and a local one, is fitted to with a warning, and so is any by a value that was shipped;
    where the user's files disagree with each other it is a ConfigError, because somebody expects what cannot be had.
    """
    return _fit_output(_fit_context(profile, model), model)


def _fit_context(profile: ResolvedProfile, model: ModelChoice) -> ResolvedProfile:
    if model.context_window is None:
        return profile
    limits, cap = profile.profile.limits, context_cap(model.context_window)
    if limits.max_context_tokens <= cap:
        return profile
    key = "limits.max_context_tokens"
    # Whoever left it as it was shipped insists on nothing.
    written = profile.ranks.get(key, RANK_DEFAULT) >= RANK_FILE
    said = f"{limits.max_context_tokens:,} is above {cap:,}, 80 % of the window of {model.context_window:,} of"
    source = profile.source(key)
    if _insisted(source) or (written and not model.from_flag and model.kind == "remote"):
        wrong = UsageError if source.startswith("flag") else ConfigError
        hint = f"Lower it to {cap} or less, or choose a model with a larger window ({model.source})."
        raise wrong(f"{key}: {said} {model.name!r} ({source}).", hint=hint)
    # A quarter of the window for the answer leaves the prompt most of it.
    output = min(limits.max_output_tokens, max(1, model.context_window // 4))
    warning = Finding("warning", key, f"{said} {model.name!r}; lowered to {cap:,}", adjusted=True)
    return _with_limits(profile, warning, max_context_tokens=cap, max_output_tokens=output)


def _fit_output(profile: ResolvedProfile, model: ModelChoice) -> ResolvedProfile:
    """Some models of the table end an answer by then or never; who states another cap gets it."""
    known = known_model(model.name)
    key = "limits.max_output_tokens"
    if known is None or known.output_max is None or _insisted(profile.source(key)):
        return profile
    if profile.profile.limits.max_output_tokens <= known.output_max:
        return profile
    text = f"lowered to {known.output_max:,}, the most that is sensible for {model.name!r}"
    warning = Finding("warning", key, text, adjusted=True)
    return _with_limits(profile, warning, max_output_tokens=known.output_max)


def _insisted(source: str) -> bool:
    """Whether somebody said so for this very run."""
    return source.startswith(("flag", "--set", "environment"))


def _with_limits(profile: ResolvedProfile, warning: Finding, **limits: int) -> ResolvedProfile:
    return ResolvedProfile(
        profile.profile.model_copy(update={"limits": profile.profile.limits.model_copy(update=limits)}),
        profile.sources,
        (*profile.findings, warning),
        profile.path,
        profile.ranks,
    )
