"""`agentao-gov run`: one question, a conversation or a batch, governed by a profile."""

from pathlib import Path
from typing import Annotated

import typer

from agentao_gov.commands._options import ApiKeyEnv, BaseUrl, Config, Mode, Model, Sets

_Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The question.")]
_Profile = Annotated[str, typer.Option("--profile", "-p", metavar="NAME|PATH", help="The profile to run under.")]
_Tenant = Annotated[str, typer.Option(metavar="NAME", help="Whose budgets count.")]
_User = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose budget below the tenant's. Default: the login name.")
]
_Session = Annotated[str | None, typer.Option(metavar="ID", help="A conversation to go on with, or to begin.")]
_Workdir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where the tools work. Default: a private directory.")
]
_Gguf = Annotated[Path | None, typer.Option(metavar="FILE", help="Your own model file for --model embedded.")]
_Timeout = Annotated[str | None, typer.Option(metavar="D", help="Time limit of a turn: 90s, 5m.")]
_ToolTimeout = Annotated[str | None, typer.Option(metavar="D", help="Time limit of every tool call.")]
_MaxIterations = Annotated[int | None, typer.Option(metavar="N", help="LLM calls per turn.")]
_MaxContext = Annotated[str | None, typer.Option(metavar="TOKENS", help="Context cap: 64k.")]
_TurnTokens = Annotated[str | None, typer.Option(metavar="TOKENS", help="Token budget of a turn: 100k.")]
_DailyTokens = Annotated[
    str | None, typer.Option(metavar="TOKENS", help="The tenant's daily budget, for this command.")
]
_Allow = Annotated[
    list[str] | None,
    typer.Option(metavar="PATTERN", help="Shell commands that need no consent, like 'pytest *'. Repeatable."),
]
_Batch = Annotated[str | None, typer.Option(metavar="FILE|-", help="A JSON line or a line of text per prompt.")]
_Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Turns of a batch at once.")]
_Output = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where answers go; an existing batch output is continued.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print the TurnReport, one line, and nothing else.")]
_NoStream = Annotated[bool, typer.Option("--no-stream", help="Show the answer at its end only.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No panel, no progress, no notes.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show warnings and every tool call.")]


def command(
    prompt: _Prompt = None,
    profile: _Profile = "qa",
    config: Config = None,
    tenant: _Tenant = "local",
    user: _User = None,
    session: _Session = None,
    workdir: _Workdir = None,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    gguf: _Gguf = None,
    sets: Sets = None,
    timeout: _Timeout = None,
    tool_timeout: _ToolTimeout = None,
    max_iterations: _MaxIterations = None,
    max_context: _MaxContext = None,
    turn_tokens: _TurnTokens = None,
    daily_tokens: _DailyTokens = None,
    allow: _Allow = None,
    mode: Mode = None,
    batch: _Batch = None,
    jobs: _Jobs = 4,
    output: _Output = None,
    json: _Json = False,
    no_stream: _NoStream = False,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
) -> int:
    """Runs one governed turn, a conversation, or a batch.

    The answer goes to standard output and everything else to standard error. Without PROMPT a piped standard input
    is the question; on a terminal a conversation begins (/limits /budget /report /save /help /quit).
    """
    import gc

    # Importing makes nothing but objects that stay; looking through them again and again takes a fifth of the start.
    gc.disable()
    from agentao_gov.commands.run_context import RunOptions
    from agentao_gov.commands.run_setup import run
    from agentao_gov.config import ModelFlags, Overrides

    flags = {
        "limits.turn_timeout": ("--timeout", timeout),
        "limits.tool_timeout": ("--tool-timeout", tool_timeout),
        "limits.max_iterations": ("--max-iterations", max_iterations),
        "limits.max_context_tokens": ("--max-context", max_context),
        "limits.turn_tokens": ("--turn-tokens", turn_tokens),
        "pool.mode": ("--mode", mode),
    }
    options = RunOptions(
        prompt=prompt, profile=profile, config=config, tenant=tenant, user=user, session=session, workdir=workdir,
        model=ModelFlags(model, base_url, api_key_env), gguf=gguf, overrides=Overrides.given(flags, sets),
        daily_tokens=daily_tokens, allow=tuple(allow or ()), batch=batch, jobs=jobs, output=output,
        json=json, stream=not no_stream, quiet=quiet, verbose=verbose,
    )  # fmt: skip
    try:
        return run(options)
    finally:
        gc.enable()
