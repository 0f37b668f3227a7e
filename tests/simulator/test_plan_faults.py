"""What a client gets when the script says that something breaks."""

from __future__ import annotations

import json

import pytest

from agentao_gov.simulator import Simulator
from tests.simulator.client import Client


def test_a_429_carries_its_retry_after(client: Client) -> None:
    """The header is what a retrying client obeys."""
    reply = client.ask("x", sim={"fault": {"status": 429, "retry_after": "20s"}})

    assert (reply.status, reply.headers["retry-after"]) == (429, "20")
    assert reply.json["error"]["code"] == "rate_limit_exceeded"


def test_a_refusal_bills_nothing(client: Client, simulator: Simulator) -> None:
    """A provider does not bill a 500."""
    client.ask("x", sim={"fault": "500"})

    total = simulator.truth().total
    assert (total.calls, total.refused, total.total_tokens) == (1, 1, 0)


def test_a_fault_ends_after_its_times(client: Client) -> None:
    """500 twice, then an answer, for each call anew."""
    sim = {"fault": {"status": 500, "times": 2}}

    statuses = [client.ask("first", sim=sim).status for _ in range(3)]
    other = client.ask("second", sim=sim).status

    assert statuses == [500, 500, 200]
    assert other == 500


def test_a_hang_sends_no_byte_until_the_client_goes(client: Client, simulator: Simulator) -> None:
    """Not even the status line; the ground truth sees the client leave."""
    connection = client.send("x", sim={"fault": "hang"}, stream=True)
    simulator.wait_for(in_flight=1)
    connection.close()

    simulator.wait_for(client_gone=1)
    record = simulator.truth().requests[0]
    assert record.first_byte_at is None
    assert record.completion_tokens == 0
    assert record.prompt_tokens > 0


def test_a_bounded_hang_goes_on_afterwards(client: Client) -> None:
    """A slow provider is not a dead one."""
    reply = client.stream("x", sim={"fault": {"kind": "hang", "seconds": "50ms"}, "text": "late"})

    assert reply.text == "late"


def test_a_stall_sends_some_tokens_and_no_more(client: Client, simulator: Simulator) -> None:
    """What was written until then is in the truth."""
    connection = client.send("x", sim={"fault": {"kind": "stall", "after": 2}, "answer_tokens": 20}, stream=True)
    response = connection.getresponse()
    while b"content" not in response.readline():
        pass
    connection.close()

    simulator.wait_for(client_gone=1)
    assert simulator.truth().requests[0].completion_tokens == 2


def test_a_drip_goes_byte_by_byte_without_end(client: Client, simulator: Simulator) -> None:
    """Each read succeeds, so only a deadline ends it."""
    reply = client.ask("x", sim={"fault": {"kind": "drip", "interval": "2ms"}}, stream=True, read_bytes=400)

    assert len(reply.raw) == 400
    assert not reply.done
    simulator.wait_for(client_gone=1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_drop_breaks_the_connection(client: Client, simulator: Simulator, stream: bool) -> None:
    """The client sees an incomplete answer, never a complete one."""
    reply = client.ask("x", sim={"fault": {"kind": "drop", "after": 2}, "answer_tokens": 20}, stream=stream)

    assert reply.broken
    assert not reply.done
    assert simulator.truth().requests[0].completion_tokens == (2 if stream else 0)


def test_a_drop_before_the_first_byte_looks_like_a_dead_server(client: Client) -> None:
    """No head at all."""
    with pytest.raises((ConnectionError, OSError)):
        client.ask("x", sim={"fault": {"kind": "drop", "after": 0}}, stream=True)


def test_html_comes_with_status_200(client: Client) -> None:
    """A proxy's page in place of an answer."""
    reply = client.ask("x", sim={"fault": "html"})

    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.raw.startswith(b"<!DOCTYPE html>")


def test_a_malformed_event_follows_good_ones(client: Client) -> None:
    """The stream begins well."""
    reply = client.ask("x", sim={"fault": "malformed", "answer_tokens": 10}, stream=True)

    with pytest.raises(json.JSONDecodeError):
        _ = reply.events
    assert b'"content"' in reply.raw


def test_an_error_event_comes_in_mid_stream(client: Client) -> None:
    """As providers report overload after they began."""
    reply = client.ask("x", sim={"fault": "error_event", "answer_tokens": 10}, stream=True)

    assert reply.events[-1]["error"]["type"] == "server_error"


def test_a_stream_without_an_end_has_neither_finish_reason_nor_done(client: Client) -> None:
    """The connection ends in good order all the same."""
    reply = client.ask("x", sim={"fault": "no_done", "answer_tokens": 10}, stream=True)

    assert (reply.broken, reply.done, reply.finish_reason) == (None, False, None)


@pytest.mark.parametrize(
    "directive",
    ['{"txet": "x"}', '{"fault": "explode"}', '{"first_token": "soon"}', "{broken}", '{"usage": "some"}'],
)
def test_a_misspelt_directive_is_refused(client: Client, directive: str) -> None:
    """A script with a typing error must not pass as a good model."""
    reply = client.ask(f"x\n@sim {directive}")

    assert reply.status == 400
    assert reply.json["error"]["code"] == "invalid_directive"


def test_an_empty_answer_has_no_text(client: Client) -> None:
    """Finish reason `stop`, and nothing said."""
    reply = client.stream("x", sim={"text": ""})

    assert (reply.text, reply.finish_reason) == ("", "stop")
