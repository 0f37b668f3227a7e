"""Streams put together at random, cut anywhere: whatever comes, no less is charged than was given."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentao_gov.governor.tokens import count_tokens
from tests.governor.harness import Harness
from tests.governor.provider import STOP, Handler, Provide, chunk, reset, usage

GRANTED = 300


class Rambling:
    """A provider that puts its streams together at random, and keeps the truth: what it gave, and what it reported."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.given = 0
        self.reported: list[int] = []
        #: Whether the last report covers all that was given.
        self.covered = False
        self.lost = False

    def __call__(self, handler: Handler, _: dict[str, Any]) -> None:
        rng = self._rng
        kinds = rng.choices(["text", "thought", "counted", "report", "comment", "empty"], (5, 2, 1, 1, 1, 1), k=8)
        kinds += ["stop", "report"][: rng.randrange(3)]
        if rng.random() < 0.3:
            rng.shuffle(kinds)
        handler.stream()
        for kind in kinds[: rng.choice((1, 3, None, None))]:
            handler.wfile.write(self._piece(kind))
        self.lost = rng.random() < 0.3
        if self.lost:
            reset(handler)

    def _piece(self, kind: str) -> bytes:
        text = "some words " * self._rng.choice((1, 5, 20))
        match kind:
            case "stop":
                return STOP
            case "report":
                return chunk(used=self._report())
            case "comment":
                return b": still there\n\n"
            case "empty":
                return chunk({"role": "assistant"})
        self.given += count_tokens(text)
        said = self._report() if kind == "counted" else None
        self.covered = said is not None
        return chunk({"reasoning" if kind == "thought" else "content": text}, used=said)

    def _report(self) -> dict[str, Any]:
        self.reported.append(self._rng.randrange(1, GRANTED))
        self.covered = True
        return usage(4_000, self.reported[-1])


@pytest.mark.parametrize("seed", range(20))
def test_no_stream_costs_less_than_it_gave(harness: Harness, provide: Provide, seed: int) -> None:
    """However it is put together and wherever it ends: an exact charge is the provider's word, any other a bound."""
    provider = Rambling(seed)
    limits = {"max_output_tokens": GRANTED, "llm_retries": 0}
    session = harness.open(base_url=provide(provider).base_url, limits=limits)

    used = (report := harness.ask(session, "hello")).usage

    assert harness.used(report) == (used.total_tokens, 0)
    assert used.llm_calls == 1
    if not used.estimated_tokens:
        assert provider.covered
        assert used.completion_tokens == max(provider.reported)
    elif not provider.lost:
        # A reset may throw away unread what was under way: then nobody here can know what was given.
        assert used.completion_tokens >= min(GRANTED, provider.given)
