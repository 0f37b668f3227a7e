"""`agentao-gov admin`: key."""

from __future__ import annotations

import json
import os
import sys

import typer

from agentao_gov.commands._options import Config, Json

app = typer.Typer(help="The operator's own key to a service of tenants.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """The operator's own key to a service of tenants."""


@app.command()
def key(config: Config = None, as_json: Json = False) -> None:
    """Make an admin key: it reads /metrics and every tenant's status. Printed once; the file gets its hash."""
    from agentao_gov.config import find_deployment
    from agentao_gov.config.edit import add_admin_key
    from agentao_gov.errors import ConfigError

    path = find_deployment(config, os.environ)
    if path is None:
        raise ConfigError("There is no agentao-gov.toml here.", hint="`agentao-gov init` writes one, or give --config.")
    made, digest = add_admin_key(path)
    if as_json:
        sys.stdout.write(json.dumps({"api_key": made, "api_key_sha256": digest}) + "\n")
        return
    sys.stdout.write(f"{made}\n")
    sys.stderr.write(f"This is the only time the admin key is shown. {path} holds its hash.\n")
