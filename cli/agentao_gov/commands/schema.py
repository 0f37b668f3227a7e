"""`agentao-gov schema`: the JSON Schema of everything that is read or written."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

_NAMES = ("checklist", "deployment", "loadtest", "profile", "turn-report")


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(_NAMES)}.")],
) -> None:
    """Print a JSON Schema: checklist, deployment, loadtest, profile or turn-report."""
    sys.stdout.write(json.dumps(_schema(name), indent=2) + "\n")


def _schema(name: str) -> dict[str, Any]:
    # Each schema is made where its models live; only the one that is asked for is imported.
    if name == "profile":
        from agentao_gov.config.schema import profile_schema

        return profile_schema()
    if name == "deployment":
        from agentao_gov.config.schema import deployment_schema

        return deployment_schema()
    if name == "turn-report":
        from agentao_gov.governor.report import TurnReport

        return TurnReport.model_json_schema(by_alias=True)
    if name == "checklist":
        from agentao_gov.checklist.report import json_schema

        return json_schema()
    if name == "loadtest":
        from agentao_gov.loadtest.document import schema

        return schema()
    from agentao_gov.errors import UsageError

    raise UsageError(f"There is no schema {name!r}; there are: {', '.join(_NAMES)}.")
