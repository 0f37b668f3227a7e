"""The first token is the first text, however the stream is cut, commented or ended."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentao_gov.loadtest.client import StreamReader


def lines_of(stream: bytes, sizes: Iterator[int]) -> Iterator[tuple[bytes, int]]:
    """Lines as `readline` gives them from fragments of these sizes, with the offset at which each was whole."""
    buffer, at = b"", 0
    while at < len(stream):
        size = next(sizes)
        buffer += stream[at : at + size]
        at += size
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            yield line + b"\n", at
    if buffer:
        yield buffer, at


def event(data: object, name: str | None = None, end: bytes = b"\n") -> bytes:
    head = f"event: {name}".encode() + end if name else b""
    return (
        head
        + b"data: "
        + (data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode())
        + end
        + end
    )


def delta(**fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


REPORT = {"outcome": "answered", "usage": {"prompt_tokens": 5}}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@given(sizes=st.lists(st.integers(1, 7), min_size=1))
def test_native_text_is_found_in_any_framing(end: bytes, sizes: list[int]) -> None:
    """Comments, tools and an empty delta come first; the text has a character of four bytes, cut anywhere."""
    head = b": hello" + end + end + event({"name": "glob"}, "tool", end) + event({"delta": ""}, "text", end)
    stream = (
        head
        + event({"delta": "wörd 🙂"}, "text", end)
        + event({"delta": "x"}, "text", end)
        + event(REPORT, "report", end)
    )
    reader = StreamReader("native")

    for line, offset in lines_of(stream, (sizes[i % len(sizes)] for i in range(10**6))):
        reader.line(line, offset)

    first_whole = stream.index(event({"delta": "wörd 🙂"}, "text", end)) + len(event({"delta": "wörd 🙂"}, "text", end))
    assert reader.first_text_us is not None
    assert len(head) < reader.first_text_us <= first_whole + max(sizes)
    assert reader.outcome == "answered"
    assert reader.report == REPORT


def test_openai_role_only_and_empty_deltas_are_no_token() -> None:
    """The first chunk of most providers carries a role and no text."""
    reader = StreamReader("openai")
    chunks = [delta(role="assistant"), delta(role="assistant", content=""), delta(content=None), delta(content="hi")]

    for at, chunk in enumerate(chunks):
        reader.line(event(chunk).split(b"\n")[0], at)
    reader.line(event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}), 9)
    reader.line(b"data: [DONE]\n", 10)

    assert reader.first_text_us == 3
    assert reader.outcome == "answered"
    assert reader.usage == {"prompt_tokens": 3}


def test_gaps_are_counted_between_texts() -> None:
    """Mean and longest."""
    reader = StreamReader("native")
    for at in (100, 200, 500):
        reader.line(b"event: text\n", at)
        reader.line(b'data: {"delta":"x"}\n', at)
        reader.line(b"\n", at)

    assert (reader.first_text_us, reader.gap_mean_us, reader.gap_max_us) == (100, 200, 300)


@pytest.mark.parametrize(
    ("api", "stream", "outcome"),
    [
        ("native", b"", "incomplete"),
        ("native", event({"delta": "half an ans"}, "text"), "incomplete"),
        ("openai", event(delta(content="half an ans")), "incomplete"),
        ("openai", event(b"{not json"), "malformed_event"),
        ("openai", event({"error": {"code": "model_error", "message": "m"}}), "model_error"),
        ("native", event({"error": {"code": "draining"}}, "error"), "draining"),
        ("native", event({"outcome": "turn_timeout"}, "report"), "turn_timeout"),
        ("native", event([1], "report"), "incomplete"),
    ],
)
def test_a_stream_that_does_not_end_well_is_not_answered(api: str, stream: bytes, outcome: str) -> None:
    """A cut stream looks like a short answer unless its last word is looked for."""
    reader = StreamReader(api)  # type: ignore[arg-type]

    for line in stream.splitlines(keepends=True):
        reader.line(line, 1)

    assert reader.outcome == outcome
