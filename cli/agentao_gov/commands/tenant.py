"""`agentao-gov tenant`: new, list."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from agentao_gov.commands._options import Config, Json

app = typer.Typer(help="Tenants and their API keys.", no_args_is_help=True)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tenant; listed if it is not yet.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Make an API key for a tenant. The key is printed once; the deployment file gets its hash."""
    from agentao_gov.config import find_deployment
    from agentao_gov.config.edit import add_tenant_key
    from agentao_gov.errors import ConfigError

    path = find_deployment(config, os.environ)
    if path is None:
        raise ConfigError("There is no agentao-gov.toml here.", hint="`agentao-gov init` writes one, or give --config.")
    key, digest = add_tenant_key(path, name)
    if as_json:
        sys.stdout.write(json.dumps({"tenant": name, "api_key": key, "api_key_sha256": digest}) + "\n")
        return
    sys.stdout.write(f"{key}\n")
    sys.stderr.write(f"This is the only time the key of {name!r} is shown. {path} holds its hash.\n")


@app.command("list")
def list_tenants(config: Config = None, as_json: Json = False) -> None:
    """List the tenants with their caps."""
    from agentao_gov.config import load_deployment
    from agentao_gov.report.terminal import console, print_table

    tenants = load_deployment(config).deployment.tenants
    if as_json:
        rows = [
            {"name": name, "keys": len(tenant.api_key_sha256), **tenant.model_dump(exclude={"api_key_sha256"})}
            for name, tenant in tenants.items()
        ]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    headers = ("tenant", "keys", "sessions", "per user", "tokens a day", "time zone", "profiles")
    table = [
        (
            name,
            str(len(tenant.api_key_sha256)),
            _cap(tenant.max_sessions),
            _cap(tenant.max_sessions_per_user),
            _cap(tenant.daily_tokens),
            tenant.timezone or "-",
            ", ".join(tenant.profiles) if tenant.profiles is not None else "all",
        )
        for name, tenant in tenants.items()
    ]
    print_table(console(sys.stdout), headers, table)


def _cap(value: int | None) -> str:
    return "unlimited" if value is None else f"{value:,}"
