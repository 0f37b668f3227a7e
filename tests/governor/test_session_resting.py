"""A resting session's conversation: compressed, unchanged, and there when a turn begins."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from agentao_gov.governor.session import IdleMessages
from agentao_gov.governor.tokens import Anchor


def parts(messages: list[dict[str, Any]]) -> Any:
    """As much of an agent as holds a conversation."""
    model = SimpleNamespace(anchor=Anchor(), saved_anchor=None)
    return SimpleNamespace(agent=SimpleNamespace(messages=messages), model=model)


def talk(count: int) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[n % 2], "content": f"{n}: größer \ud83d 漢字 " + "some words to press " * 50}
        for n in range(count)
    ]


def test_messages_come_back_as_they_were() -> None:
    """Also what is no valid Unicode; a copy can be had while they rest."""
    made = parts(talk(40))
    resting = IdleMessages(made)

    assert resting.compress()
    held = made.agent.messages
    copied = resting.messages()
    resting.restore()

    assert held == []
    assert copied == made.agent.messages == talk(40)


def test_a_short_conversation_is_left_alone() -> None:
    """There is nothing to win."""
    made = parts(talk(2))

    assert not IdleMessages(made).compress()
    assert len(made.agent.messages) == 2


def test_nothing_rests_under_a_turn() -> None:
    """A turn says that it is busy, then restores the messages: whichever comes first, it has them."""
    made = parts(talk(40))
    resting = IdleMessages(made)
    busy = threading.Event()

    def turns() -> None:
        for _ in range(200):
            busy.set()
            resting.restore()
            seen.append(len(made.agent.messages))
            busy.clear()

    seen: list[int] = []
    thread = threading.Thread(target=turns)
    thread.start()
    while thread.is_alive():
        resting.compress(busy.is_set)
    thread.join()

    assert set(seen) == {40}


def test_what_the_provider_reported_survives_the_rest() -> None:
    """As figures, which the next call's bound is built on; the anchor itself would hold the messages."""
    made = parts(talk(40))
    system = {"role": "system", "content": "be brief"}
    made.model.anchor.record([system, *made.agent.messages], None, 9_000, 20)
    resting = IdleMessages(made)
    before = resting.anchor(made.agent.messages)

    resting.compress()

    assert before is not None
    assert before["messages"] == 40
    assert not made.model.anchor.known
    assert resting.anchor(resting.messages()) == made.model.saved_anchor == before
