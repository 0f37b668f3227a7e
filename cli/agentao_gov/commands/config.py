"""`agentao-gov config`: show, check, schema."""

from __future__ import annotations

import json
import sys

import typer

from agentao_gov.commands._options import Config, Json, Sets, Strict

app = typer.Typer(help="The deployment file agentao-gov.toml.", no_args_is_help=True)


@app.command()
def show(config: Config = None, sets: Sets = None, as_json: Json = False) -> None:
    """Print every effective value, with where it came from."""
    from agentao_gov.commands._show import findings_json, print_findings, settings_json, settings_lines
    from agentao_gov.config import Overrides, load_deployment

    resolved = load_deployment(config, overrides=Overrides.given({}, sets))
    shown = resolved.deployment.model_copy(
        update={"state": resolved.deployment.state.model_copy(update={"dir": str(resolved.state_dir)})}
    )
    if as_json:
        record = {
            "path": str(resolved.path) if resolved.path else None,
            "values": settings_json(shown, resolved.sources),
            "findings": findings_json(resolved.findings),
        }
        sys.stdout.write(json.dumps(record) + "\n")
        return
    sys.stdout.write(f"# {resolved.path or 'no deployment file: defaults'}\n")
    sys.stdout.write("\n".join(settings_lines(shown, resolved.sources)) + "\n")
    print_findings(resolved.findings)


@app.command()
def check(
    config: Config = None,
    strict: Strict = False,
    as_json: Json = False,
) -> int:
    """Judge the deployment file and every profile it offers."""
    from agentao_gov.budget.prices import PriceTable
    from agentao_gov.commands._show import judge_findings
    from agentao_gov.config.load_deployment import audit_deployment
    from agentao_gov.loadtest.thresholds import parse_threshold

    findings = audit_deployment(config, check_threshold=parse_threshold, check_prices=PriceTable.load)
    return judge_findings(findings, strict=strict, as_json=as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of agentao-gov.toml, for editors."""
    from agentao_gov.config.schema import deployment_schema

    sys.stdout.write(json.dumps(deployment_schema(), indent=2) + "\n")
