"""`agentao-gov run`: one question, a conversation or a batch, governed by a profile."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    prompt: Annotated[
        str | None, typer.Argument(help="The question. Without one: standard input, or a conversation.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", "-p", help="Name or path of the profile.")] = "qa",
    config: Annotated[Path | None, typer.Option(help="The deployment file.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose budgets count.")] = "local",
    user: Annotated[str | None, typer.Option(help="Whose budget below the tenant's. Default: the login name.")] = None,
    session: Annotated[str | None, typer.Option(help="Id of a conversation to go on with, or to begin.")] = None,
    workdir: Annotated[Path | None, typer.Option(help="Where the tools work. Default: a private directory.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name, 'embedded' or 'simulated'.")] = None,
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Name of the variable that holds the API key.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="Your own model file for --model embedded.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Any setting of profile or deployment.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Time limit of a turn: 90s, 5m.")] = None,
    tool_timeout: Annotated[str | None, typer.Option(help="Time limit of every tool call.")] = None,
    max_iterations: Annotated[int | None, typer.Option(help="LLM calls per turn.")] = None,
    max_context: Annotated[str | None, typer.Option(help="Context cap in tokens: 64k.")] = None,
    turn_tokens: Annotated[str | None, typer.Option(help="Token budget of a turn: 100k.")] = None,
    daily_tokens: Annotated[str | None, typer.Option(help="The tenant's daily budget, for this command.")] = None,
    mode: Annotated[str | None, typer.Option(help="fresh, in-process or subprocess.")] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="A JSON line or a line of text per prompt.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Turns of a batch at once.")] = 4,
    output: Annotated[
        Path | None, typer.Option(help="Where answers go; an existing batch output is continued.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the TurnReport, one line, and nothing else.")] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Show the answer at its end only.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No panel, no progress, no notes.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show warnings and every tool call.")] = False,
) -> int:
    """Runs one governed turn, a conversation, or a batch.

    The answer goes to standard output and everything else to standard error. Without PROMPT a piped standard input
    is the question; on a terminal a conversation begins (/limits /budget /report /save /quit).
    """
    import gc

    # Importing makes nothing but objects that stay; looking through them again and again takes a fifth of the start.
    gc.disable()
    from agentao_gov.commands.run_setup import RunOptions, run

    flags = {
        "limits.turn_timeout": ("--timeout", timeout),
        "limits.tool_timeout": ("--tool-timeout", tool_timeout),
        "limits.max_iterations": ("--max-iterations", max_iterations),
        "limits.max_context_tokens": ("--max-context", max_context),
        "limits.turn_tokens": ("--turn-tokens", turn_tokens),
        "pool.mode": ("--mode", mode),
    }
    try:
        return run(
            RunOptions(
                prompt=prompt,
                profile=profile,
                config=config,
                tenant=tenant,
                user=user,
                session=session,
                workdir=workdir,
                model=model,
                base_url=base_url,
                api_key_env=api_key_env,
                gguf=gguf,
                sets=tuple(sets or ()),
                flags={key: pair for key, pair in flags.items() if pair[1] is not None},
                daily_tokens=daily_tokens,
                batch=batch,
                jobs=jobs,
                output=output,
                json=json,
                stream=not no_stream,
                quiet=quiet,
                verbose=verbose,
            )
        )
    finally:
        gc.enable()
