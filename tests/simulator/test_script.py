"""Scripts: rules, files, seeds, capacity, holds."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.simulator import Simulator, load_script, start_simulator
from agentao_gov.simulator.plan import Planner
from agentao_gov.simulator.request import ChatRequest
from agentao_gov.simulator.script import Distribution
from agentao_gov.simulator.wire_completions import CompletionsWire
from tests.simulator.client import Client

LATENCIES = {
    "first_token": {"dist": "lognormal", "p50": "300ms", "p99": "2s"},
    "per_token": {"dist": "exponential", "mean": "20ms"},
    "answer_tokens": {"dist": "uniform", "low": 10, "high": 200},
}


def _request(text: str = "x") -> ChatRequest:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}
    return CompletionsWire().read(json.dumps(body).encode(), {})


def _delays(planner: Planner, text: str) -> list[float]:
    return [step.delay_s for step in planner.plan(CompletionsWire(), _request(text)).steps]


def test_the_same_seed_draws_the_same_delays() -> None:
    """Whatever the order in which requests arrive."""
    script = load_script({"seed": 7, "default": LATENCIES})
    forward, backward = Planner(script), Planner(script)

    a = {text: _delays(forward, text) for text in ("one", "two", "three")}
    b = {text: _delays(backward, text) for text in ("three", "two", "one")}

    assert a == b


def test_another_seed_draws_other_delays() -> None:
    """Or the seed would be decoration."""
    one = Planner(load_script({"seed": 1, "default": LATENCIES}))
    two = Planner(load_script({"seed": 2, "default": LATENCIES}))

    assert _delays(one, "x") != _delays(two, "x")


def test_a_lognormal_has_the_percentiles_it_was_given() -> None:
    """p50 and p99 within a tenth, over 4,000 draws."""
    planner = Planner(load_script({"default": {"first_token": LATENCIES["first_token"], "text": "x"}}))

    drawn = sorted(_delays(planner, f"question {n}")[0] for n in range(4000))

    assert drawn[2000] == pytest.approx(0.3, rel=0.1)
    assert drawn[3960] == pytest.approx(2.0, rel=0.25)


def test_a_rule_is_used_up_after_its_times(client: Client, simulator: Simulator) -> None:
    """Then the next rule, or the default, decides."""
    simulator.configure({"rules": [{"match": {"contains": "go"}, "times": 2, "respond": {"fault": "503"}}]})

    statuses = [client.ask("go").status for _ in range(3)]

    assert statuses == [503, 503, 200]


def test_a_rule_matches_on_all_its_fields(client: Client, simulator: Simulator) -> None:
    """Model, user and words."""
    match = {"contains": "go", "model": "m", "user": "u"}
    simulator.configure({"rules": [{"match": match, "respond": {"text": "matched"}}]})

    hit = client.ask("go", user="u").json["choices"][0]["message"]["content"]
    miss = client.ask("go", user="other").json["choices"][0]["message"]["content"]

    assert hit == "matched"
    assert miss != "matched"


def test_steps_follow_the_rounds_of_the_tool_loop(client: Client) -> None:
    """The first round calls, the second fails, as written."""
    sim = {"steps": [{"tool": {"name": "read_file"}}, {"fault": "500"}], "tag": "t"}
    question = {"role": "user", "content": f"x\n@sim {json.dumps(sim)}"}
    tools = [{"type": "function", "function": {"name": "read_file"}}]
    message = client.ask([question], tools=tools).json["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "r"}

    second = client.ask([question, message, result], tools=tools)

    assert second.status == 500


def test_capacity_queues_what_it_cannot_serve(client: Client, simulator: Simulator) -> None:
    """Two at once; the third begins when one of them ends."""
    simulator.configure({"capacity": {"concurrency": 2}, "default": {"hold": "gate"}})
    threads = [threading.Thread(target=client.ask, args=(f"q{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()

    waiting = simulator.wait_for(held=2, queued=1)
    simulator.release("gate", stay_open=True)
    for thread in threads:
        thread.join(10)

    assert waiting.total.in_flight == 3
    assert simulator.truth().total.answered == 3


def test_capacity_may_refuse_instead(client: Client, simulator: Simulator) -> None:
    """With Retry-After, and nothing billed."""
    simulator.configure({"capacity": {"concurrency": 1, "overflow": "429"}, "default": {"hold": "gate"}})
    connection = client.send("first")
    simulator.wait_for(held=1)

    second = client.ask("second")
    connection.close()

    assert (second.status, second.headers["retry-after"]) == (429, "1")
    assert simulator.truth().requests[1].prompt_tokens == 0


def test_a_queued_client_that_leaves_gives_its_place_up(client: Client, simulator: Simulator) -> None:
    """Or the queue would fill with the dead."""
    simulator.configure({"capacity": {"concurrency": 1}, "default": {"hold": "gate"}})
    first = client.send("first")
    simulator.wait_for(held=1)
    second = client.send("second")
    simulator.wait_for(queued=1)

    second.close()
    simulator.wait_for(client_gone=1)
    queued = simulator.truth().queued
    first.close()

    assert queued == 0
    simulator.wait_for(idle=True)


def test_truth_is_summed_by_key_user_tag_and_session(simulator: Simulator) -> None:
    """So that a tenant's bill can be checked against the ledger's."""
    Client(simulator, api_key="key-a").ask("x", user="u1", sim={"tag": "t1"}, headers={"X-Gov-Session": "s1"})
    Client(simulator, api_key="key-b").ask("x", user="u2")

    truth = simulator.truth()

    assert truth.for_key("key-a").calls == 1
    assert truth.by_user["u2"].total_tokens == truth.for_key("key-b").total_tokens
    assert truth.by_tag["t1"] == truth.by_session["s1"]
    assert "key-a" not in truth.model_dump_json()


def test_a_reset_drops_what_is_in_flight(client: Client, simulator: Simulator) -> None:
    """The next test starts clean."""
    connection = client.send("x", sim={"fault": "hang"})
    simulator.wait_for(in_flight=1)

    simulator.reset()

    assert simulator.truth().total.calls == 0
    with pytest.raises(OSError):
        connection.getresponse()
    connection.close()


def test_waiting_for_what_does_not_come_says_what_there_was(simulator: Simulator) -> None:
    """A test that fails here must be readable."""
    with pytest.raises(TimeoutError, match="calls >= 1"):
        simulator.wait_for(timeout_s=0.05, calls=1)


def test_a_toml_file_is_a_script(tmp_path: Path) -> None:
    """The form a load test's author writes."""
    path = tmp_path / "script.toml"
    path.write_text('seed = 3\n[default]\nfirst_token = "250ms"\n[capacity]\nconcurrency = 8\n')

    script = load_script(path)

    assert script.default.first_token == Distribution(value=0.25)
    assert script.capacity.concurrency == 8


@pytest.mark.parametrize("text", ["seed = ", "[default]\nfirst_tokn = 1\n", "[capacity]\nconcurrency = 0\n"])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    """The message leads to the file and the field."""
    path = tmp_path / "script.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=r"script\.toml"):
        load_script(path)


def test_directives_can_be_switched_off(client: Client, simulator: Simulator) -> None:
    """Where prompts come from strangers."""
    simulator.configure({"directives": False})

    assert client.ask("x", sim={"fault": "500"}).status == 200


def test_the_simulator_starts_with_a_seed_and_ends_on_close() -> None:
    """Its own process, gone afterwards."""
    with start_simulator({"text": "hello"}, seed=5) as running:
        answer = Client(running).ask("x").json["choices"][0]["message"]["content"]

    assert answer == "hello"
    assert not running.alive
