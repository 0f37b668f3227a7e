"""A turn while it runs, on a terminal: the text as it arrives, and one status line against the limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from agentao_gov.governor.types import IterationEvent, TextEvent, ToolEvent, TurnEvent
from agentao_gov.report.terminal import STYLES, printable

if TYPE_CHECKING:
    from agentao_gov.config import Limits

__all__ = ["LiveTurn"]

_REFRESH_PER_S = 8
#: Lines of text shown while it grows; the whole answer is printed at the end.
_TAIL_LINES_MIN = 5


class LiveTurn:
    """Shows a turn on a terminal. `on_event` is called on the turn's thread, the rest on the caller's."""

    def __init__(
        self, console: Console, limits: Limits, *, show_text: bool, note: Callable[[], str] = lambda: ""
    ) -> None:
        """`note` adds a word to the status line: what an embedded model is doing."""
        self._console = console
        self._limits = limits
        self._show_text = show_text
        self._note = note
        self._lock = threading.Lock()
        #: Text of the round that is being written; under `_lock`.
        self._text = ""
        #: Under `_lock`.
        self._iteration = 0
        self._tokens = 0
        self._last_tool = ""
        self._started = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=_REFRESH_PER_S, transient=True
        )

    def on_event(self, event: TurnEvent) -> None:
        """Takes one event of the turn."""
        with self._lock:
            match event:
                case TextEvent(delta):
                    self._text += printable(delta)
                case IterationEvent(iteration, used):
                    # A new round: what was written before it was said on the way, not the answer.
                    self._iteration, self._tokens, self._text = iteration, used, ""
                case ToolEvent(name, outcome, duration_ms):
                    self._last_tool = f"{printable(name)} {outcome} {duration_ms / 1000:.1f} s"

    def pause(self) -> None:
        """Clears the screen for a question to the person."""
        self._live.stop()

    def resume(self) -> None:
        """Goes on after the question."""
        self._live.start()

    def _render(self) -> RenderableType:
        with self._lock:
            text, iteration, used, tool = self._text, self._iteration, self._tokens, self._last_tool
        limits = self._limits
        elapsed_s = time.monotonic() - self._started
        parts = [
            f"{elapsed_s:4.0f} of {limits.turn_timeout_s:g} s",
            f"iteration {iteration} of {limits.max_iterations}",
            f"{used:,} of {limits.turn_tokens:,} tokens",
        ]
        parts += [part for part in (tool, self._note()) if part]
        status = Spinner("dots", Text(" · ".join(parts), STYLES["dim"]))
        if not self._show_text or not text:
            return status
        room = max(_TAIL_LINES_MIN, self._console.height - 4)
        return Group(Markdown("\n".join(text.splitlines()[-room:])), status)

    def __enter__(self) -> LiveTurn:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
