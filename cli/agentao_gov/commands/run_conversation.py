"""A conversation at the terminal: one turn after another, and the commands that begin with a slash."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from agentao_gov.commands.run_turn import Asker, print_answer, take_turn
from agentao_gov.errors import GovError
from agentao_gov.governor.report import TurnReport
from agentao_gov.report.terminal import console
from agentao_gov.report.turn_panel import print_budget, print_limits, print_panel

if TYPE_CHECKING:
    from agentao_gov.commands.run_context import RunContext

_HELP = """/limits   every limit with its value and where it came from
/budget   what is used of each token budget
/report   the last turn's report as JSON
/save     write the conversation to a Markdown file: /save [FILE]
/help     this
/quit     leave; the session is kept and can be continued"""

_PROMPT = "\n› "


@dataclass(slots=True)
class _Talk:
    session: str
    err: Console
    said: list[tuple[str, TurnReport]] = field(default_factory=list)

    @property
    def last(self) -> TurnReport | None:
        return self.said[-1][1] if self.said else None


def converse(context: RunContext, asker: Asker | None) -> int:
    """Talks until /quit or the end of input; returns the exit code: 0, or 130 after two Ctrl-C."""
    typed = _line_editing()
    session = context.options.session or f"chat-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    context.options = replace(context.options, session=session)
    talk = _Talk(session, console(sys.stderr))
    talk.err.print(f"session {session} · /help · /quit · Ctrl-C cancels a turn", style="dim")
    code, interrupted = 0, False
    while True:
        try:
            line = _ask()
            interrupted = False
            if not _say(context, talk, line, asker):
                break
        except EOFError:
            break
        except KeyboardInterrupt:
            # At the prompt, or on the way back to it; a turn catches its own.
            if interrupted and not typed():
                code = 130
                break
            interrupted = True
            talk.err.print("\nCtrl-C again, or /quit, leaves.", style="dim")
    talk.err.print(f"\nTo go on: agentao-gov run --session {session}", style="dim")
    return code


def _line_editing() -> Callable[[], bool]:
    """Gives `input` its editing and history; returns what tells whether something was typed before Ctrl-C."""
    try:
        import readline
    except ImportError:
        return lambda: False
    if os.environ.get("TERM", "dumb") != "dumb":
        # Python turns it off, for the sake of its own prompt. Without it each pasted line is a turn of its own.
        readline.parse_and_bind("set enable-bracketed-paste on")
    return lambda: bool(readline.get_line_buffer())


def _ask() -> str:
    """The person's next line; the prompt is on the terminal even where the answers go into a pipe."""
    if sys.stdout.isatty():
        return input(_PROMPT).strip()
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    return input().strip()


def _say(context: RunContext, talk: _Talk, line: str, asker: Asker | None) -> bool:
    """One line of a person's; False ends the conversation."""
    if line.startswith("/"):
        return _slash(talk, line)
    if line:
        _turn(context, talk, line, asker)
    return True


def _turn(context: RunContext, talk: _Talk, message: str, asker: Asker | None) -> None:
    """One turn. What ends it badly does not end the conversation."""
    try:
        report = take_turn(context, context.order(message, session=talk.session), asker)
    except GovError as error:
        talk.err.print(f"{error.code}: {error}", style="bold red")
        return
    except KeyboardInterrupt:
        # The second one while the turn was being cancelled: not even that is waited for.
        raise SystemExit(130) from None
    talk.said.append((message, report))
    print_answer(report)
    if not context.options.quiet:
        print_panel(talk.err, report, brief=True, told=context.profile.adjustments)


def _slash(talk: _Talk, line: str) -> bool:
    """Carries out a slash command; False ends the conversation."""
    name, _, rest = line.partition(" ")
    if name in {"/quit", "/exit"}:
        return False
    if name == "/help":
        talk.err.print(_HELP)
    elif name not in {"/limits", "/budget", "/report", "/save"}:
        talk.err.print(f"There is no {name}; a question cannot begin with a slash.\n{_HELP}")
    elif talk.last is None:
        talk.err.print("No turn has ended yet.")
    elif name == "/save":
        _save(talk, rest.strip())
    elif name == "/limits":
        print_limits(talk.err, talk.last)
    elif name == "/budget":
        print_budget(talk.err, talk.last.budget)
    else:
        talk.err.print(talk.last.model_dump_json(by_alias=True, indent=2))
    return True


def _save(talk: _Talk, name: str) -> None:
    """Writes what was said to a new file, readable by its owner."""
    path = Path(name or f"{talk.session}.md").expanduser()
    parts = [f"# {talk.session}\n"]
    for message, report in talk.said:
        parts.append(f"\n## {message}\n\n{report.answer or f'({report.outcome})'}\n")
    try:
        with path.open("x", encoding="utf-8") as file:
            path.chmod(0o600)
            file.write("".join(parts))
    except FileExistsError:
        talk.err.print(f"{path} exists; give another name: /save FILE", style="yellow")
    except OSError as error:
        talk.err.print(f"{path} cannot be written: {error.strerror}", style="yellow")
    else:
        count = len(talk.said)
        talk.err.print(f"saved {count} turn{'s' if count != 1 else ''} to {path}")
