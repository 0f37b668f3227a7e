"""The provider's prompt cache: which part of a prompt it has seen before, and which it writes down for the next time.

The rules are Anthropic's. A prefix is kept where the request marks a breakpoint; a later request reads the longest kept
prefix that ends at one of its breakpoints or up to 20 messages before it; less than 1,024 tokens are never kept.
Keys are one API key's and one model's. With `automatic` every request has one breakpoint at its end, which is how
OpenAI's APIs cache without being asked, and the prefix read is a multiple of 128 tokens. Entries do not age: a test is
over before five minutes are.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from agentao_gov.simulator.request import ChatRequest
from agentao_gov.simulator.tokens import message_tokens, text_of, tools_tokens

#: Anthropic's least for most models, and OpenAI's.
CACHED_TOKENS_MIN = 1_024
#: How far before a breakpoint Anthropic looks for what it kept.
LOOKED_BACK_MAX = 20
OPENAI_STEP_TOKENS = 128
ENTRIES_MAX = 50_000


class PrefixCache:
    """What was kept. Owned by the server's loop."""

    def __init__(self, *, automatic: bool) -> None:
        self._automatic = automatic
        self._kept: OrderedDict[str, None] = OrderedDict()

    def use(self, request: ChatRequest) -> tuple[int, int]:
        """Reads and writes for one request that is answered: tokens that were read, tokens that were written."""
        automatic = self._automatic and request.wire != "messages"
        breakpoints = [len(request.messages)] if automatic else sorted(set(request.breakpoints))
        if not breakpoints:
            return 0, 0
        tokens = list(accumulate(map(message_tokens, request.messages), initial=tools_tokens(request.tools)))
        digests = list(_digests(request))
        read = max((at for point in breakpoints for at in self._found(point, digests, tokens)), default=0)
        for point in breakpoints:
            if tokens[point] >= CACHED_TOKENS_MIN:
                self._keep(digests[point])
        cached = tokens[read] if digests[read] in self._kept and tokens[read] >= CACHED_TOKENS_MIN else 0
        if automatic:
            return cached - cached % OPENAI_STEP_TOKENS, 0
        end = tokens[breakpoints[-1]]
        return cached, end - cached if end >= CACHED_TOKENS_MIN else 0

    def _found(self, point: int, digests: list[str], tokens: list[int]) -> Iterator[int]:
        for at in range(point, max(-1, point - LOOKED_BACK_MAX - 1), -1):
            if tokens[at] >= CACHED_TOKENS_MIN and digests[at] in self._kept:
                yield at
                return

    def _keep(self, digest: str) -> None:
        self._kept[digest] = None
        self._kept.move_to_end(digest)
        if len(self._kept) > ENTRIES_MAX:
            self._kept.popitem(last=False)


def _digests(request: ChatRequest) -> Iterator[str]:
    """The digest of the tools alone, and of each longer prefix."""
    hashed = hashlib.blake2b(f"{request.api_key}\0{request.model}\0{request.tools}".encode("utf-8", "replace"))
    yield hashed.hexdigest()
    for message in request.messages:
        hashed.update(_content(message).encode("utf-8", "replace"))
        yield hashed.hexdigest()


def _content(message: Mapping[str, Any]) -> str:
    """What the model reads of a message: a marker of the cache is none of it."""
    calls = [(call.get("id"), call.get("function")) for call in message.get("tool_calls") or ()]
    content = message.get("content")
    images = [part for part in content if "text" not in part] if isinstance(content, list) else []
    return f"\1{message.get('role')}\0{text_of(content)}\0{calls}\0{message.get('tool_call_id')}\0{images}"
