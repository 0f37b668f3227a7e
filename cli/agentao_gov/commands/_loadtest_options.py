"""The options of `loadtest`, each declared once: its type, its metavariable and its help."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from agentao_gov.config.units import parse_duration_s, parse_tokens
from agentao_gov.errors import UsageError

SHAPES: Final = ("ramp", "steps", "soak", "spike", "constant", "capacity")
FORMATS = ("table", "json", "junit", "markdown", "github")

Target = Annotated[
    str | None, typer.Option(metavar="URL", help="A running service. Default: your configuration, started here.")
]
ApiKeyEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Variable that holds the target's (or the model's) key.")
]
Tenant = Annotated[
    str | None, typer.Option(metavar="NAME", help="Load this tenant alone; with --target, whose key it is.")
]
Api = Annotated[str, typer.Option(help="native | openai: which interface to load.")]
Mix = Annotated[str | None, typer.Option(metavar="NAME=WEIGHT,...", help="Profiles. Default: qa=8,code=1,research=1.")]
Shape = Annotated[str, typer.Option(help=" | ".join(SHAPES))]
Users = Annotated[
    int | None, typer.Option(min=1, help="Sessions that think between turns; with --rate their number at most.")
]
Rate = Annotated[float | None, typer.Option(metavar="TURNS/S", help="Turns a second, on a schedule.")]
SpawnRate = Annotated[float | None, typer.Option(metavar="N", help="How fast to rise, per second.")]
Duration = Annotated[str, typer.Option(metavar="D", help="Total length: 60s, 5m.")]
Drain = Annotated[str | None, typer.Option(metavar="D", help="How long turns in flight get at the end.")]
Arrivals = Annotated[str, typer.Option(help="poisson | constant")]
Threshold = Annotated[list[str] | None, typer.Option(metavar="'NAME OP VALUE'", help="Like 'turn_p95<2s'. Repeatable.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Processes that send the load.")]
Master = Annotated[bool, typer.Option("--master", help="Wait for --workers on other machines.")]
Bind = Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Where --master listens.")]
WorkerOf = Annotated[str | None, typer.Option(metavar="HOST[:PORT]", help="Be a worker of the --master there.")]
Seed = Annotated[int, typer.Option(help="Of schedule, sessions and answers.")]
Turns = Annotated[int | None, typer.Option(min=1, help="Turns a session, instead of the task's.")]
Think = Annotated[float, typer.Option(min=0, help="Stretch pauses by this factor.")]
FirstToken = Annotated[str, typer.Option(metavar="D", help="The simulated model's first token.")]
PerToken = Annotated[str, typer.Option(metavar="D", help="The simulated model's time a token.")]
Price = Annotated[str | None, typer.Option(metavar="IN,OUT", help="Per million tokens; gives a cost.")]
MaxTurns = Annotated[int | None, typer.Option(min=1, help="Upper bound.")]
MaxTokens = Annotated[str | None, typer.Option(metavar="N", help="Upper bound: 500k, 2m.")]
Victim = Annotated[str | None, typer.Option(metavar="TENANT", help="Measure this tenant alone and beside.")]
VictimRate = Annotated[float, typer.Option(metavar="TURNS/S")]
Faults = Annotated[Path | None, typer.Option(metavar="FILE", help="A script of faults to play.")]
Replay = Annotated[Path | None, typer.Option(metavar="FILE", help="Recorded turns instead of drawn ones.")]
Speed = Annotated[float, typer.Option(min=0.01, help="Of --replay.")]
KeepBudgets = Annotated[bool, typer.Option("--keep-budgets", help="Leave daily budgets as configured.")]
NoChecklist = Annotated[bool, typer.Option("--no-checklist", help="Leave the checklist out.")]
Web = Annotated[bool, typer.Option("--web", help="Locust's web UI beside.")]
WebPort = Annotated[int, typer.Option(min=1, max=65535)]
Report = Annotated[Path | None, typer.Option(metavar="DIR", help="Write JSON, HTML, JUnit and Markdown.")]
Baseline = Annotated[Path | None, typer.Option(metavar="FILE", help="A report.json to compare with.")]
MaxRegression = Annotated[float, typer.Option(metavar="PCT", min=0, help="Allowed beyond it.")]
Force = Annotated[bool, typer.Option("--force", help="Compare although plan or machine differ.")]
Write = Annotated[bool, typer.Option("--write", help="Put the capacity found into the deployment file.")]
Owned = Annotated[bool, typer.Option("--i-own-this-target", help="The target may be loaded.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show schedule, turns, tokens and cost; do nothing.")]
Form = Annotated[str, typer.Option("--format", help=" | ".join(FORMATS))]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


# ── their values; each error names its flag ───────────────────────────────────────────────────────

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
