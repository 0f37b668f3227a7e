"""Reads the values of `loadtest`'s flags; each error names its flag. Imported only when the command runs."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from agentao_gov.config.units import parse_duration_s, parse_tokens
from agentao_gov.errors import UsageError

__all__ = [
    "check_together",
    "finite",
    "model_flags_of",
    "one_of",
    "positive",
    "price_of",
    "seconds_of",
    "tokens_of",
]

#: One of the words that a flag takes.
Word = TypeVar("Word", bound=str)


#: A month: no load test is longer, and a mistyped unit is found.
_SECONDS_MAX = 31 * 86_400.0


#: Flags that mean nothing without another one.
_NEEDS = {
    "bind": "master",
    "web_port": "web",
    "speed": "replay",
    "victim_rate": "victim",
    "max_regression": "baseline",
    "force": "baseline",
}


def check_together(context: Any) -> None:
    """Raises UsageError for flags that cannot both be meant, and for those that would have no effect."""
    given = [name for name in context.params if context.get_parameter_source(name).name == "COMMANDLINE"]
    if "worker_of" in given and (others := [name for name in given if name != "worker_of"]):
        raise UsageError(f"A worker is told everything by its master: {_flag(others[0])} belongs there.")
    for name in given:
        other = _NEEDS.get(name)
        if other is not None and other not in given:
            raise UsageError(f"{_flag(name)} has no effect without {_flag(other)}.")
    if "as_json" in given and "form" in given and context.params["form"] != "json":
        raise UsageError(f"--json and --format {context.params['form']}: which of them?")


def _flag(name: str) -> str:
    return {"as_json": "--json", "form": "--format", "owned": "--i-own-this-target"}.get(
        name, "--" + name.replace("_", "-")
    )


def one_of(flag: str, value: str, words: tuple[Word, ...]) -> Word:
    """The word that the value is. Raises UsageError where it is none of them."""
    for word in words:
        if word == value:
            return word
    raise UsageError(f"{flag} is one of {', '.join(words)}, not {value!r}.")


def positive(flag: str, value: float | None) -> float | None:
    """The number, which is above 0 and finite where there is one. Raises UsageError."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{flag} must be a positive number, not {value:g}.")
    return value


def finite(flag: str, value: float) -> float:
    """The number, which is at least 0 and finite. Raises UsageError."""
    if not (value >= 0 and math.isfinite(value)):
        raise UsageError(f"{flag} must be a number from 0 up, not {value:g}.")
    return value


def seconds_of(flag: str, text: str, *, least: float = 0.5) -> float:
    """Reads `60s`, `5m`. Raises UsageError."""
    try:
        seconds = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}.") from None
    if seconds < least:
        raise UsageError(f"{flag} is at least {least:g} s, not {text}.")
    if not seconds <= _SECONDS_MAX:
        raise UsageError(f"{flag} is at most 31 days, not {text}.")
    return seconds


def tokens_of(text: str | None) -> int | None:
    """Reads `500k`. Raises UsageError."""
    try:
        return None if text is None else parse_tokens(text)
    except ValueError as error:
        raise UsageError(f"--max-tokens: {error}.") from None


def price_of(text: str | None) -> tuple[float, float] | None:
    """Reads `2.0,8.0`. Raises UsageError."""
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--price {text!r}: write two numbers, such as 2.0,8.0.") from None
    return finite("--price", prompt), finite("--price", completion)


def model_flags_of(model: str | None, base_url: str | None, api_key_env: str | None) -> dict[str, str]:
    """Flags for `serve`; none, or `--model simulated`, means the simulated model of the load test."""
    if model == "simulated" and base_url is None:
        return {}
    flags = {"--model": model, "--base-url": base_url, "--api-key-env": api_key_env}
    return {name: value for name, value in flags.items() if value is not None}
