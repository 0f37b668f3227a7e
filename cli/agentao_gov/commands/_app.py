"""The Typer application: every command by name, each imported when it is asked for.

Help is plain text: no boxes, no colour, the same in a terminal and a pipe.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

#: Name of each command, and its line in `--help`. The module is `agentao_gov.commands.NAME`; it has a function
#: `command`, or a Typer `app` where there are sub-commands. Both return an exit code or None for 0.
COMMANDS = {
    "run": "One question, a conversation or a batch, governed by a profile.",
    "checklist": "Prove that every limit of a configuration refuses.",
    "loadtest": "Drive the session pool to its capacity, with a gate.",
    "serve": "The session pool as an HTTP service.",
    "init": "Write agentao-gov.toml and profiles/, commented.",
    "profile": "Profiles: list, show, new, check, schema.",
    "config": "The deployment file: show, check, schema.",
    "budget": "Token budgets: show, grant, verify, export.",
    "plan": "Measure this machine and print the capacity plan.",
    "admin": "The operator's own key: key.",
    "tenant": "Tenants and their API keys: new, list.",
    "doctor": "What this machine and configuration can guarantee.",
    "schema": "JSON Schemas of everything that is read or written.",
}
_RUN_TURNS = frozenset({"run", "checklist", "loadtest", "serve", "plan"})


class _LazyGroup(typer.core.TyperGroup):
    """Knows the commands by name; imports the one that is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = _load(cmd_name)
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # For "Did you mean": typer looks among the commands that are loaded, and none is yet.
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    if name in _RUN_TURNS:
        # Here and not in what they start: a gate would call it a failure of the configuration under test.
        from agentao_gov.governor.agentao_version import require_agentao

        require_agentao()
        _provide_temporary_directory()
    module = import_module(f"agentao_gov.commands.{name}")
    app: typer.Typer | None = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name, help=module.command.__doc__ or COMMANDS[name])(module.command)
    app.rich_markup_mode = None
    # A module's own Typer would add --install-completion to every sub-command.
    app._add_completion = False
    command = typer.main.get_command(app)
    command.name = name
    return command


def _provide_temporary_directory() -> None:
    import os
    from pathlib import Path

    from agentao_gov.config.deployment import State
    from agentao_gov.process.scratch import provide_temporary_directory

    # A deployment file may name another state directory; it is read later, and by processes that need one already.
    provide_temporary_directory(Path(os.environ.get("AGENTAO_GOV_STATE") or State().dir).expanduser())


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"agentao-gov {version('agentao-gov')}\n")
        raise typer.Exit


def application() -> typer.core.TyperGroup:
    """The whole command line, ready to parse."""
    app = typer.Typer(
        name="agentao-gov",
        cls=_LazyGroup,
        add_completion=True,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
    ) -> None:
        """Runs agentao agents under limits, pools their sessions, proves the limits and load-tests the pool."""

    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return group
