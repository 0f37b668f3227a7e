"""`agentao-gov profile`: list, show, new, check, schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentao_gov.commands._options import Config, Json, Sets, Strict

app = typer.Typer(help="Profiles: the limits, tools and model of a task type.", no_args_is_help=True)


@app.command("list")
def list_profiles(config: Config = None, as_json: Json = False) -> None:
    """List the profiles that can be named, the nearest of each name."""
    from agentao_gov.config import inspect_profile, load_deployment, profile_paths
    from agentao_gov.report.terminal import console, print_table

    deployment = load_deployment(config)
    rows = []
    for name, path in sorted(profile_paths(deployment).items()):
        resolved, findings = inspect_profile(path, deployment=deployment)
        profile = resolved.profile if resolved else None
        broken = any(finding.level == "error" for finding in findings)
        rows.append(
            {
                "name": name,
                "task": profile.task if profile else None,
                "tier": profile.tier if profile else None,
                "description": "(has errors: see `agentao-gov profile check`)"
                if broken or profile is None
                else profile.description,
                "path": _shown(path),
            }
        )
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    headers = ("name", "task", "tier", "description", "path")
    print_table(console(sys.stdout), headers, [[str(row[h] or "-") for h in headers] for row in rows])


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="The profile.")],
    config: Config = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Print every effective value of a profile, with where it came from."""
    from agentao_gov.commands._show import findings_json, print_findings, settings_json, settings_lines
    from agentao_gov.config import Overrides, load_deployment, load_profile

    overrides = Overrides.given({}, sets)
    resolved = load_profile(name, deployment=load_deployment(config, overrides=overrides), overrides=overrides)
    if as_json:
        record = {
            "name": resolved.profile.name,
            "path": str(resolved.path),
            "values": settings_json(resolved.profile, resolved.sources),
            "findings": findings_json(resolved.findings),
        }
        sys.stdout.write(json.dumps(record) + "\n")
        return
    sys.stdout.write(f"# {_shown(resolved.path)}\n")
    sys.stdout.write("\n".join(settings_lines(resolved.profile, resolved.sources)) + "\n")
    print_findings(resolved.findings)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new profile.")],
    source: Annotated[str, typer.Option("--from", metavar="NAME|FILE", help="The profile to copy.")] = "qa",
    config: Config = None,
) -> None:
    """Write profiles/NAME.toml, a copy of another profile.

    Its comments come along. A file that exists is never overwritten.
    """
    from agentao_gov.config.edit import new_profile

    path = new_profile(name, source, config)
    sys.stdout.write(f"{_shown(path)}\n")
    sys.stderr.write(f"Edit it, then: agentao-gov profile check {_shown(path)}\n")


@app.command()
def check(
    files: Annotated[list[Path] | None, typer.Argument(metavar="NAME|FILE", help="Default: every profile.")] = None,
    config: Config = None,
    strict: Strict = False,
    as_json: Json = False,
) -> int:
    """Judge profiles.

    Impossible values and unknown keys are errors, unusual values warnings.
    """
    from agentao_gov.commands._show import judge_findings
    from agentao_gov.config import Finding, inspect_profile, load_deployment, profile_paths

    deployment = load_deployment(config)
    # A bare name is as good as a file here: people type what `list` shows them.
    names: list[Path | str] = [f if f.exists() or f.suffix else str(f) for f in files or ()]
    findings: list[Finding] = []
    for name in names or list(profile_paths(deployment).values()):
        _, found = inspect_profile(name, deployment=deployment)
        findings += found
    return judge_findings(findings, strict=strict, as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of profiles, for editors."""
    from agentao_gov.config.schema import profile_schema

    sys.stdout.write(json.dumps(profile_schema(), indent=2) + "\n")


def _shown(path: Path | None) -> str:
    """A path as short as it can be typed from here."""
    if path is None:
        return "-"
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
