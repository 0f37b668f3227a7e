"""The options of `loadtest`, each declared once: its type, its metavariable and its help."""

from pathlib import Path
from typing import Annotated, Final

import typer

__all__ = [
    "FORMATS",
    "SHAPES",
    "Api",
    "ApiKeyEnv",
    "Arrivals",
    "AsJson",
    "Baseline",
    "Bind",
    "Drain",
    "DryRun",
    "Duration",
    "Faults",
    "FirstToken",
    "Force",
    "Form",
    "KeepBudgets",
    "Master",
    "MaxRegression",
    "MaxTokens",
    "MaxTurns",
    "Mix",
    "NoChecklist",
    "Owned",
    "PerToken",
    "Price",
    "Quiet",
    "Rate",
    "Replay",
    "Report",
    "Seed",
    "Shape",
    "SpawnRate",
    "Speed",
    "Target",
    "Tenant",
    "Think",
    "Threshold",
    "Turns",
    "Users",
    "Victim",
    "VictimRate",
    "Web",
    "WebPort",
    "WorkerOf",
    "Workers",
    "Write",
]

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
