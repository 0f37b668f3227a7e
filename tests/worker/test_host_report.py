"""What a session process says about itself is checked by its owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.governor import Outcome, TurnRequest, Usage
from agentao_gov.governor.report import Reason
from agentao_gov.worker.factory import SubprocessFactory
from agentao_gov.worker.host import TurnRecord
from tests.worker.sessions import Subprocesses


@pytest.fixture
def record(subprocesses: Subprocesses) -> TurnRecord:
    return TurnRecord(subprocesses.spec(), TurnRequest("turn", "hi", "ann"), (), lambda _event: None, SYSTEM_CLOCK)


def test_a_report_carries_the_identity_and_the_totals_that_the_owner_knows(
    subprocesses: Subprocesses, record: TurnRecord
) -> None:
    """A process taken over by its tools cannot report for another tenant, nor hide what it spent."""
    honest = record.report(Outcome.ANSWERED, Reason("fine"), Usage(), subprocesses.ledger)
    forged: dict[str, Any] = {"tenant": "other", "session": "x", "turn_id": "y", "user": "root", "exit_code": 3}

    signed = record.sign(
        honest.model_copy(update=forged), Usage(prompt_tokens=40, completion_tokens=2, total_tokens=42)
    )

    assert (signed.tenant, signed.session) == (honest.tenant, honest.session)
    assert (signed.turn_id, signed.user, signed.exit_code) == ("turn", "ann", 0)
    assert signed.usage.total_tokens == 42
    assert "reported 0 tokens, the ledger booked 42" in signed.warnings[0]


def test_a_report_s_tokens_are_those_that_were_booked(subprocesses: Subprocesses, record: TurnRecord) -> None:
    """A right total of wrong parts, or a negative one, does not reach a bill."""
    honest = record.report(Outcome.ANSWERED, Reason("fine"), Usage(), subprocesses.ledger)
    said = Usage(prompt_tokens=-100, completion_tokens=142, total_tokens=42, cached_tokens=7)

    signed = record.sign(
        honest.model_copy(update={"usage": said, "model": "gpt-5"}),
        Usage(prompt_tokens=40, completion_tokens=2, total_tokens=42, estimated_tokens=3),
    )

    usage = signed.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated_tokens) == (40, 2, 3)
    assert usage.cached_tokens == 7
    assert signed.model == honest.model
    assert signed.warnings == ()


def test_a_factory_that_still_warms_up_is_shut_down_at_once(make_factory: Callable[..., SubprocessFactory]) -> None:
    """A service that is told to go in its first second does not wait for its zygote."""
    factory = make_factory(own_zygote=True, ready=1)
    factory.warm_up()

    factory.shutdown(Deadline.after(5))

    assert factory.process_ids() == ()
    assert factory.ready_count() == 0
