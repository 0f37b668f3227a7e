"""Runs one turn for a terminal or a script: waits, shows, asks, cancels at Ctrl-C, prints."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from agentao_gov.commands._show import write_output
from agentao_gov.errors import StoreError
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import EventSink, ToolEvent, TurnEvent
from agentao_gov.report.terminal import console, printable, warn
from agentao_gov.report.turn_panel import print_panel
from agentao_gov.simulator.embedded import EmbeddedModel

if TYPE_CHECKING:
    from agentao_gov.commands.run_context import RunContext
    from agentao_gov.pool import TurnOrder
    from agentao_gov.report.turn_panel import LiveTurn

#: How often the main thread looks up from waiting: a signal is handled between two looks.
_LOOK_S = 0.1
#: A person who thinks longer than the turn may last has answered no; the turn's end must not wait for them.
_ASK_MARGIN_S = 0.5
#: What of a call's arguments is shown to the person who is asked; a whole screen is still read.
_ARGUMENTS_CHARS_MAX = 1_500
#: How often the embedded model is asked what it does.
_ASK_MODEL_S = 0.5


@dataclass(slots=True)
class _Question:
    text: str
    answered: threading.Event = field(default_factory=threading.Event)
    yes: bool = False


class Asker:
    """Carries a tool's question from the turn's thread to the person at the terminal. Satisfies `ConfirmTool`."""

    def __init__(self) -> None:
        self.questions: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        #: Monotonic time by which an answer is of use; set by the main thread before a turn.
        self.until = 0.0

    def __call__(self, name: str, description: str, arguments: dict[str, Any]) -> bool:
        """Asks and waits, at most as long as the turn may last. Called on the turn's thread."""
        del description
        question = _Question(f"The model wants to run {printable(name)}({_shown(arguments)}). Allow it? [y/N] ")
        self.questions.put(question)
        question.answered.wait(max(0.0, self.until - time.monotonic()))
        return question.yes

    def refuse_all(self) -> None:
        """Answers no to whatever still waits."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.questions.get_nowait().answered.set()


def _shown(arguments: dict[str, Any]) -> str:
    """A call's arguments on one line; never cut without saying so, as the end may be what matters."""
    text = printable(", ".join(f"{key}={value!r}" for key, value in arguments.items()))
    left = len(text) - _ARGUMENTS_CHARS_MAX
    return text if left <= 0 else f"{text[:_ARGUMENTS_CHARS_MAX]}… and {left:,} characters that are not shown"


def run_once(context: RunContext, prompt: str, asker: Asker | None) -> int:
    """One turn; prints the answer, or the report with `--json`, and returns the exit code."""
    report = take_turn(context, context.order(prompt, session=context.options.session), asker)
    return _deliver(context, report)


def take_turn(context: RunContext, order: TurnOrder, asker: Asker | None) -> TurnReport:
    """Submits a turn and waits for its report; raises CapacityError where it is refused.

    Ctrl-C cancels the turn, a second one raises KeyboardInterrupt; SIGTERM cancels it as a shutdown.
    """
    options = context.options
    err = console(sys.stderr)
    out = console(sys.stdout)
    limits = order.profile.profile.limits
    live: LiveTurn | None = None
    if not (options.json or options.quiet) and err.file.isatty():
        # Only where somebody watches: Markdown and its parser take a tenth of a second to import.
        from agentao_gov.report.turn_panel import LiveTurn

        on_stdout = out.file.isatty()
        show_text = on_stdout and options.stream
        live = LiveTurn(out if show_text else err, limits, show_text=show_text, note=_note(context))
    sink = _sink(live, err if options.verbose and not options.json else None)
    if asker is not None:
        asker.until = time.monotonic() + limits.turn_timeout_s - _ASK_MARGIN_S
    with live or contextlib.nullcontext():
        future = context.pool.submit(order, sink)
        try:
            return _wait(context, order, future, asker, live)
        finally:
            if asker is not None:
                asker.refuse_all()


def _wait(
    context: RunContext,
    order: TurnOrder,
    future: concurrent.futures.Future[TurnReport],
    asker: Asker | None,
    live: LiveTurn | None,
) -> TurnReport:
    cancelled = False
    while True:
        try:
            with _terminating():
                while True:
                    done, _ = concurrent.futures.wait([future], timeout=_LOOK_S)
                    if done:
                        return future.result().for_operator()
                    if asker is not None:
                        _answer(asker, live)
        except KeyboardInterrupt:
            if cancelled:
                raise
            cancelled = True
            context.pool.cancel(order.key, "cancelled")
        except _Terminated:
            context.pool.cancel(order.key, "shutdown")
            grace_s = order.profile.profile.limits.cancel_grace_s
            concurrent.futures.wait([future], timeout=grace_s + 1.0)
            if context.options.json and future.done() and future.exception() is None:
                sys.stdout.write(future.result().for_operator().to_json() + "\n")
            raise SystemExit(143) from None


class _Terminated(BaseException):
    """SIGTERM while a turn runs."""


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM raises `_Terminated` in this block, so that the turn is told before the program ends."""

    def terminated(_signal: int, _frame: object) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _answer(asker: Asker, live: LiveTurn | None) -> None:
    """Puts a waiting question to the person. Reads the terminal with a deadline, so that no answer is a no."""
    try:
        question = asker.questions.get_nowait()
    except queue.Empty:
        return
    if live is not None:
        live.pause()
    with contextlib.suppress(termios.error):
        # What was typed before the question is no answer to it.
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
    sys.stderr.write(question.text)
    sys.stderr.flush()
    terminal = select.poll()
    terminal.register(sys.stdin, select.POLLIN)
    while time.monotonic() < asker.until:
        if terminal.poll(_LOOK_S * 1000):
            question.yes = sys.stdin.readline().strip().lower() in {"y", "yes"}
            break
    else:
        sys.stderr.write("(no answer in time: no)\n")
    question.answered.set()
    if live is not None:
        live.resume()


def _sink(live: LiveTurn | None, verbose: Console | None) -> EventSink:
    def sink(event: TurnEvent) -> None:
        if live is not None:
            live.on_event(event)
        if verbose is not None and isinstance(event, ToolEvent):
            verbose.print(f"tool {printable(event.name)}: {event.outcome}, {event.duration_ms} ms")

    return sink


def _note(context: RunContext) -> Any:
    """What the embedded model is doing: reading a first prompt takes 5 to 20 s, and silence looks like a hang."""
    local = context.local
    if not isinstance(local, EmbeddedModel):
        return lambda: ""
    asked_at, text = 0.0, ""

    def note() -> str:
        nonlocal asked_at, text
        if time.monotonic() - asked_at > _ASK_MODEL_S:
            progress = local.progress()
            words = {
                "reading": f"reading the prompt: {progress.prompt_tokens_read:,} tokens",
                "answering": f"answering: {progress.completion_tokens:,} tokens",
            }
            asked_at, text = time.monotonic(), words.get(progress.state, "")
        return text

    return note


def _deliver(context: RunContext, report: TurnReport) -> int:
    options = context.options
    # First the file: showing the answer may fail, where nobody reads it or a disk is full, and it is paid for.
    saved = _save(context, report)
    if options.json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        print_answer(report)
        if not options.quiet:
            print_panel(console(sys.stderr), report, told=context.profile.adjustments)
    return report.exit_code or saved


def _save(context: RunContext, report: TurnReport) -> int:
    """Writes `--output`; returns 0, or the exit code with which an answer that has no file ends."""
    options = context.options
    if options.output is None:
        return 0
    try:
        write_output(options.output, report.to_json() + "\n" if options.json else f"{report.answer or ''}\n")
    except OSError as error:
        warn(f"the output {str(options.output)!r} could not be written: {error.strerror}")
        return StoreError.ending.exit_code
    return 0


def print_answer(report: TurnReport) -> None:
    """The answer alone: as Markdown for a person, as it came for a pipe."""
    if not report.answer:
        return
    out = console(sys.stdout)
    if out.is_terminal and not out.no_color:
        from rich.markdown import Markdown

        out.print(Markdown(printable(report.answer)))
    else:
        text = report.answer.rstrip("\n") + "\n"
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    # Before the panel, where both end up on one screen.
    sys.stdout.flush()
