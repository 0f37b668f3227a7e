"""Reads the values of `loadtest`'s flags; each error names its flag. Imported only when the command runs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from agentao_gov.commands._loadtest_options import SHAPES
from agentao_gov.config.units import parse_duration_s, parse_tokens
from agentao_gov.errors import UsageError
from agentao_gov.loadtest.options import DEFAULT_MIX, Options, parse_mix
from agentao_gov.loadtest.worker import split_address

__all__ = ["check_together", "one_of", "options_of"]

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


def options_of(given: SimpleNamespace) -> Options:
    """The options that the flags come to; `given` has each flag's value by its name. Raises UsageError."""
    one_of("--shape", given.shape, SHAPES)
    one_of("--api", given.api, ("native", "openai"))
    one_of("--arrivals", given.arrivals, ("poisson", "constant"))
    split_address(given.bind)
    at_target = given.target is not None
    return Options(
        config=given.config,
        target=given.target,
        api=given.api,
        api_key_env=given.api_key_env if at_target else None,
        tenant=given.tenant,
        model_flags=_model_flags_of(given.model, given.base_url, None if at_target else given.api_key_env),
        mix=dict(DEFAULT_MIX) if given.mix is None else parse_mix(given.mix),
        mix_given=given.mix is not None,
        shape=given.shape,
        users=given.users,
        rate=_positive("--rate", given.rate),
        spawn_rate=_positive("--spawn-rate", given.spawn_rate),
        duration_s=_seconds_of("--duration", given.duration or ("120s" if given.shape == "capacity" else "60s")),
        drain_s=None if given.drain is None else _seconds_of("--drain", given.drain, least=0.0),
        process=given.arrivals,
        thresholds=tuple(given.threshold or ()),
        workers=given.workers,
        bind=given.bind if given.master else None,
        seed=given.seed,
        checklist=not given.no_checklist,
        web_port=given.web_port if given.web else None,
        report_dir=given.report,
        baseline=given.baseline,
        max_regression=_finite("--max-regression", given.max_regression) / 100,
        force=given.force,
        owned=given.owned,
        keep_budgets=given.keep_budgets,
        turns_per_session=given.turns,
        think_scale=_finite("--think", given.think),
        first_token_s=_seconds_of("--first-token", given.first_token, least=0.0),
        per_token_s=_seconds_of("--per-token", given.per_token, least=0.0),
        max_turns=given.max_turns,
        max_tokens=_tokens_of(given.max_tokens),
        price=_price_of(given.price),
        victim=given.victim,
        victim_rate=_positive("--victim-rate", given.victim_rate) or 1.0,
        faults=given.faults,
        replay=given.replay,
        replay_speed=_positive("--speed", given.speed) or 1.0,
        replay_until_s=_seconds_of("--duration", given.duration) if given.duration else None,
        write=given.write,
    )


def one_of(flag: str, value: str, words: tuple[str, ...]) -> None:
    """Raises UsageError where the value is none of the words."""
    if value not in words:
        raise UsageError(f"{flag} is one of {', '.join(words)}, not {value!r}.")


def _positive(flag: str, value: float | None) -> float | None:
    """The number, which is above 0 and finite where there is one. Raises UsageError."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{flag} must be a positive number, not {value:g}.")
    return value


def _finite(flag: str, value: float) -> float:
    """The number, which is at least 0 and finite. Raises UsageError."""
    if not (value >= 0 and math.isfinite(value)):
        raise UsageError(f"{flag} must be a number from 0 up, not {value:g}.")
    return value


def _seconds_of(flag: str, text: str, *, least: float = 0.5) -> float:
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


def _tokens_of(text: str | None) -> int | None:
    """Reads `500k`. Raises UsageError."""
    try:
        return None if text is None else parse_tokens(text)
    except ValueError as error:
        raise UsageError(f"--max-tokens: {error}.") from None


def _price_of(text: str | None) -> tuple[float, float] | None:
    """Reads `2.0,8.0`. Raises UsageError."""
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--price {text!r}: write two numbers, such as 2.0,8.0.") from None
    return _finite("--price", prompt), _finite("--price", completion)


def _model_flags_of(model: str | None, base_url: str | None, api_key_env: str | None) -> dict[str, str]:
    """Flags for `serve`; none, or `--model simulated`, means the simulated model of the load test."""
    if model == "simulated" and base_url is None:
        return {}
    flags = {"--model": model, "--base-url": base_url, "--api-key-env": api_key_env}
    return {name: value for name, value in flags.items() if value is not None}
