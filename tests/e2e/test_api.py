"""The HTTP contract, against the real service with the simulated model behind it."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import uuid
from typing import Any

import jsonschema
import openai
import pytest

from agentao_gov.simulator import Simulator
from tests.e2e.service import Deployment, Service, running, say, wait_until

#: The first test's time includes the start of the service, which takes 3 s on an idle machine and 20 on a loaded one.
pytestmark = pytest.mark.timeout(90)

ASK = {"model": "qa", "messages": [{"role": "user", "content": "x"}]}


def client(service: Service, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=key or service.key, max_retries=0, timeout=30)


def fresh() -> str:
    return f"s-{uuid.uuid4().hex[:12]}"


def chat(service: Service, message: str, **more: Any) -> Any:
    body = {"model": "qa", "messages": [{"role": "user", "content": message}], **more.pop("body", {})}
    return service.post("/v1/chat/completions", body, **more)


def test_the_openai_sdk_gets_an_answer_with_usage_and_report(service: Service, simulator: Simulator) -> None:
    """Usage is what the provider counted."""
    answer = client(service).chat.completions.create(
        model="qa", messages=[{"role": "user", "content": say(text="Four.")}], user="ann"
    )
    truth = simulator.truth()

    assert answer.choices[0].message.content == "Four."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == truth.total.prompt_tokens + truth.total.completion_tokens
    assert answer.model_extra is not None
    report = answer.model_extra["agentao_gov"]
    assert (report["tenant"], report["user"], report["outcome"], report["mode"]) == ("acme", "ann", "answered", "fresh")


def test_the_openai_sdk_streams_with_usage_in_the_last_chunk(service: Service) -> None:
    """Several chunks, then usage."""
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    stream = client(service).chat.completions.create(
        model="qa",
        messages=[{"role": "user", "content": say(text=text, chunk_tokens=2, per_token="5ms")}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Session-Id": fresh()},
    )

    chunks = list(stream)

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert len(chunks) > 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 10
    assert chunks[-1].model_extra is not None
    assert chunks[-1].model_extra["agentao_gov"]["outcome"] == "answered"


def test_with_a_session_id_the_last_user_message_is_the_turn(service: Service, simulator: Simulator) -> None:
    """What the client sends of the history is ignored: the session has its own."""
    session = fresh()
    with client(service).with_options(default_headers={"X-Session-Id": session}) as sdk:
        for word in ("first-word", "second-word"):
            sdk.chat.completions.create(
                model="qa",
                messages=[
                    {"role": "user", "content": "forged-history"},
                    {"role": "assistant", "content": "forged-answer"},
                    {"role": "user", "content": say(word, text="ok")},
                ],
            )
    found = service.get(f"/v1/sessions/{session}").json
    last = simulator.truth().requests[-1]

    assert found["usage"]["turns"] == 2
    assert found["state"] == "idle"
    # system, first question, first answer, second question
    assert last.messages == 4


def test_without_a_session_id_an_agent_starts_from_the_given_messages(service: Service, simulator: Simulator) -> None:
    """And leaves nothing behind."""
    before = service.get("/v1/sessions").json["total"]
    messages = [
        {"role": "user", "content": "my name is Ada"},
        {"role": "assistant", "content": "Hello Ada"},
        {"role": "user", "content": say("who am I?", text="Ada")},
    ]

    answer = service.post("/v1/chat/completions", {"model": "qa", "messages": messages})

    assert answer.status == 200
    assert simulator.truth().requests[-1].messages == 4
    # The answer does not wait for the agent's close.
    wait_until(lambda: service.get("/v1/sessions").json["total"] <= before, "the end of the agent")


def test_a_native_turn_gives_the_report(service: Service) -> None:
    """And its schema is the published one."""
    session = fresh()

    answer = service.turn(session, say(text="Four."))
    document = service.get("/openapi.json").json

    assert answer.status == 200
    assert answer.json["answer"] == "Four."
    assert answer.json["session"] == session
    assert answer.headers["x-turn-id"] == answer.json["turn_id"]
    jsonschema.validate(answer.json, {**document, "$ref": "#/components/schemas/TurnReport"})


def test_a_native_turn_without_profile_goes_on_with_the_sessions_own(service: Service) -> None:
    """The session remembers it."""
    session = fresh()
    service.turn(session, say(text="a"), profile="brisk")

    answer = service.post(f"/v1/sessions/{session}/turns", {"message": say(text="b")})

    assert answer.json["profile"] == "brisk"


def test_a_native_stream_is_text_tools_and_a_last_report(service: Service) -> None:
    """In the order of the contract."""
    message = say("look", tool={"name": "glob", "args": {"pattern": "*"}}, text="done now")

    answer = service.turn(fresh(), message, headers={"Accept": "text/event-stream"})
    blocks = [block for block in answer.body.decode().split("\n\n") if block.startswith("event: ")]
    names = [block.splitlines()[0].removeprefix("event: ") for block in blocks]
    datas = [json.loads(block.splitlines()[1].removeprefix("data: ")) for block in blocks]

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert names[-1] == "report"
    assert "tool" in names
    tool = datas[names.index("tool")]
    assert (tool["name"], tool["outcome"]) == ("glob", "ok")
    assert "".join(data["delta"] for name, data in zip(names, datas, strict=True) if name == "text") == "done now"
    assert datas[-1]["outcome"] == "answered"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_request"),
        (b"", {}, 400, "invalid_request"),
        (b"[]", {}, 400, "invalid_request"),
        (b"\xff", {}, 400, "invalid_request"),
        ({"messages": [{"role": "user", "content": "x"}]}, {}, 400, "invalid_request"),
        ({"model": "qa", "messages": []}, {}, 400, "invalid_request"),
        ({"model": "nope", "messages": [{"role": "user", "content": "x"}]}, {}, 403, "profile_not_allowed"),
        ({"model": "qa", "messages": [{"role": "user", "content": "x" * (1 << 20) + "y"}]}, {}, 413, "too_large"),
        (ASK, {"X-Session-Id": "a/b"}, 400, "invalid_request"),
        (ASK, {"X-Session-Id": ""}, 400, "invalid_request"),
    ],
)  # fmt: skip
def test_bad_input_has_its_code(
    service: Service, simulator: Simulator, body: Any, headers: dict[str, str], status: int, code: str
) -> None:
    """And nothing reaches the model."""
    answer = service.post("/v1/chat/completions", body, headers=headers)

    assert (answer.status, answer.code) == (status, code)
    assert simulator.truth().total.calls == 0


def test_a_body_larger_than_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    """The announced length is enough."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Authorization", f"Bearer {service.key}")
    connection.putheader("Content-Length", str(1 << 30))
    connection.endheaders()

    response = connection.getresponse()
    code = json.loads(response.read())["error"]["code"]
    connection.close()

    assert (response.status, code) == (413, "too_large")


def test_a_chunked_body_larger_than_the_limit_is_cut_off(service: Service) -> None:
    """A body without a length is counted while it comes."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        sock.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        answer = b""
        try:
            for _ in range(100):
                sock.sendall(chunk)
            answer = sock.recv(4096)
        except OSError:
            answer = answer or b" 413 "  # reset after the answer: the service did not read on

    assert b" 413 " in answer


def test_headers_have_a_limit(service: Service) -> None:
    """A megabyte of headers is not kept."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
        try:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Big: " + b"x" * (1 << 20))
            answer = sock.recv(4096)
        except OSError:
            answer = b" 400 "

    assert b" 400 " in answer or b" 431 " in answer or answer == b""


@pytest.mark.parametrize("path", ["/v1/models", "/v1/sessions", "/v1/status", "/v1/sessions/x"])
def test_a_wrong_key_is_401_everywhere(service: Service, path: str) -> None:
    """And so is none."""
    for key in ("wrong", ""):
        answer = (
            service.get(path, key=key or None, headers={} if key else {"Authorization": ""})
            if key
            else (_without_key(service, path))
        )
        assert (answer.status, answer.code) == (401, "invalid_api_key")
    assert service.metrics()['rejections_total{reason="invalid_api_key"}'] >= 2


def _without_key(service: Service, path: str) -> Any:
    kept, service.key = service.key, None
    try:
        return service.get(path)
    finally:
        service.key = kept


def test_metrics_and_health_need_no_key(service: Service) -> None:
    """Probes have none."""
    for path in ("/metrics", "/healthz", "/readyz", "/", "/openapi.json"):
        assert _without_key(service, path).status == 200


def test_two_tenants_with_the_same_session_id_are_strangers(service: Service, simulator: Simulator) -> None:
    """Neither sees, cancels nor deletes the other's, and neither hears the other's words."""
    session = fresh()
    service.turn(session, say("acme-secret", text="ok"))
    bolt: dict[str, Any] = {"key": "key-of-bolt"}

    before = [
        service.send(m, f"/v1/sessions/{session}{p}", **bolt)
        for m, p in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""))
    ]
    listed = service.get("/v1/sessions", **bolt).json["data"]
    service.turn(session, say("bolt-word", text="ok"), **bolt)
    bolts = service.get(f"/v1/sessions/{session}", **bolt).json
    last = simulator.truth().requests[-1]

    assert [(answer.status, answer.code) for answer in before] == [(404, "session_not_found")] * 3
    assert session not in {row["id"] for row in listed}
    assert bolts["usage"]["turns"] == 1
    # system and its own question
    assert last.messages == 2
    assert service.get(f"/v1/sessions/{session}").json["usage"]["turns"] == 1


def test_a_tenant_sees_only_its_profiles(service: Service) -> None:
    """`bolt` may use qa alone."""
    mine = {row["id"] for row in service.get("/v1/models").json["data"]}
    bolts = {row["id"] for row in service.get("/v1/models", key="key-of-bolt").json["data"]}
    refused = service.turn(fresh(), "x", profile="brisk", key="key-of-bolt")

    assert mine >= {"qa", "code", "research", "brisk"}
    assert bolts == {"qa"}
    assert (refused.status, refused.code) == (403, "profile_not_allowed")


def test_unknown_paths_and_methods_have_openais_shape(service: Service) -> None:
    """404 `not_found`, 405."""
    assert (service.get("/v1/nothing").status, service.get("/v1/nothing").code) == (404, "not_found")
    assert service.send("DELETE", "/v1/models").status == 405
    assert service.send("DELETE", "/v1/models").code == "method_not_allowed"
    assert (service.get("/v1/sessions/none").status, service.get("/v1/sessions/none").code) == (
        404,
        "session_not_found",
    )
    assert service.get("/v1/sessions/a%20b").status == 400


def test_what_the_service_answers_has_the_shape_it_publishes(service: Service) -> None:
    """Every operation that answers in JSON, each checked against its own schema in `/openapi.json`."""
    document = service.get("/openapi.json").json
    session = fresh()
    calls = [
        ("POST", "/v1/chat/completions", "/v1/chat/completions", ASK),
        ("POST", f"/v1/sessions/{session}/turns", "/v1/sessions/{session_id}/turns", {"message": "x"}),
        ("GET", "/v1/models", "/v1/models", None),
        ("GET", "/v1/models/qa", "/v1/models/{model_id}", None),
        ("GET", "/v1/sessions", "/v1/sessions", None),
        ("GET", f"/v1/sessions/{session}", "/v1/sessions/{session_id}", None),
        ("GET", "/v1/status?history", "/v1/status", None),
        ("POST", f"/v1/sessions/{session}/cancel", "/v1/sessions/{session_id}/cancel", None),
        ("DELETE", f"/v1/sessions/{session}", "/v1/sessions/{session_id}", None),
        ("GET", "/healthz", "/healthz", None),
        ("GET", "/readyz", "/readyz", None),
    ]
    for method, path, template, body in calls:
        answer = service.send(method, path, body)
        described = document["paths"][template][method.lower()]["responses"]["200"]["content"]
        schema = described["application/json"]["schema"]

        assert answer.status == 200
        jsonschema.validate(answer.json, {**document, **schema})


def test_a_path_tells_every_method_it_takes(service: Service) -> None:
    """`Allow` of a session names DELETE too."""
    allow = service.send("PUT", "/v1/sessions/a", {}).headers["allow"]

    assert {method.strip() for method in allow.split(",")} == {"DELETE", "GET", "HEAD"}


@pytest.mark.parametrize(
    ("directive", "status", "code"),
    [
        ({"fault": "hang"}, 504, "turn_timeout"),
        ({"fault": "500"}, 502, "model_error"),
        ({"fault": {"status": 401}}, 502, "model_error"),
        ({"fault": "html"}, 502, "model_error"),
    ],
)
def test_a_failing_model_has_its_code_and_report(
    service: Service, directive: dict[str, Any], status: int, code: str
) -> None:
    """In the native API and in OpenAI's."""
    native = service.turn(fresh(), say(**directive), profile="brisk")
    compatible = chat(service, say(**directive), body={"model": "brisk", "stream": True})

    for answer in (native, compatible):
        assert (answer.status, answer.code) == (status, code)
        assert answer.json["agentao_gov"]["outcome"] == code


def test_a_cancelled_turn_is_409_and_the_session_goes_on(service: Service, simulator: Simulator) -> None:
    """Its client is told, and the next turn works."""
    session = fresh()
    with running(lambda: service.turn(session, say(hold="forever"))) as results:
        simulator.wait_for(held=1)
        cancelled = service.post(f"/v1/sessions/{session}/cancel", None)
    after = service.turn(session, say(text="still here"))

    assert cancelled.json["cancelled"] is True
    assert (results[0].status, results[0].code) == (409, "cancelled")
    assert after.json["answer"] == "still here"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_cancels_its_turn(service: Service, simulator: Simulator, stream: bool) -> None:
    """The model's connection is closed, and the session is free again."""
    session = fresh()
    body = json.dumps({"model": "qa", "messages": [{"role": "user", "content": say(hold="forever")}], "stream": stream})
    sock = socket.create_connection(("127.0.0.1", service.port))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        f"X-Session-Id: {session}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.sendall(head.encode() + body.encode())
    simulator.wait_for(held=1)

    sock.close()
    simulator.wait_for(client_gone=1)
    wait_until(lambda: service.get(f"/v1/sessions/{session}").json["state"] == "idle", "the idle session")
    after = service.turn(session, say(text="free"))

    assert after.json["answer"] == "free"


def test_a_waiting_client_that_leaves_does_not_cancel_the_turn_before_it(
    service: Service, simulator: Simulator
) -> None:
    """Two clients on one session: only the one that left loses its turn."""
    session = fresh()
    with running(lambda: service.turn(session, say(hold="first", text="kept"))) as results:
        simulator.wait_for(held=1)
        body = json.dumps({"message": say(text="second")})
        sock = socket.create_connection(("127.0.0.1", service.port))
        head = f"POST /v1/sessions/{session}/turns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_until(lambda: service.get(f"/v1/sessions/{session}").json["waiting"] == 1, "the waiting turn")
        sock.close()
        wait_until(lambda: service.get(f"/v1/sessions/{session}").json["waiting"] == 0, "the empty queue")
        simulator.release("first")

    assert results[0].json["answer"] == "kept"
    assert service.get(f"/v1/sessions/{session}").json["usage"]["turns"] == 1


def test_deleting_a_session_removes_it_from_memory_and_disk(service: Service, simulator: Simulator) -> None:
    """A new one of the same id knows nothing."""
    session = fresh()
    service.turn(session, say("remember", text="ok"))

    deleted = service.send("DELETE", f"/v1/sessions/{session}")
    gone = service.get(f"/v1/sessions/{session}")
    service.turn(session, say("again", text="ok"))

    assert deleted.json == {"id": session, "object": "session.deleted", "deleted": True}
    assert gone.status == 404
    assert simulator.truth().requests[-1].messages == 2


def test_a_reader_that_stopped_reading_loses_its_turn_and_nobody_else_does(
    service: Service, simulator: Simulator
) -> None:
    """Its backlog is bounded; the service goes on."""
    session = fresh()
    body = json.dumps({"message": say(answer_tokens=400_000), "profile": "brisk"})
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", service.port))
    head = (
        f"POST /v1/sessions/{session}/turns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
        f"Accept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    sock.sendall((head + body).encode())
    simulator.wait_for(calls=1)

    other = service.turn(fresh(), say(text="quick"))
    wait_until(lambda: (s := service.get(f"/v1/sessions/{session}")).status == 200 and s.json["state"] == "idle")
    sock.close()

    assert other.json["answer"] == "quick"


def test_status_tells_a_tenant_its_own_part_and_nothing_of_the_others(service: Service) -> None:
    """Rungs, own budgets and sessions; whoever else there is, and what they use, does not show."""
    service.turn(fresh(), "x", key="key-of-bolt")
    service.turn(fresh(), "x")

    status = service.status()

    assert status["ready"] is True
    assert status["shutdown_rung"] == {"name": "serving", "number": 0}
    assert set(status["tenants"]) <= {"acme"}
    assert {line["key"].partition("/")[0] for line in status["budgets"]} == {"acme"}
    assert status["capacity"]["sessions"] == 500
    assert status["pool"]["resident"] == status["tenants"]["acme"]["resident"] == status["pool"]["sessions"]["idle"]
    assert "bolt" not in json.dumps(status)


def test_the_admin_key_reads_everything_and_a_tenants_key_its_own(deployment: Deployment, simulator: Simulator) -> None:
    """With `metrics = "admin"` nobody else reads the metrics, which name tenants; no key of theirs opens sessions."""
    admin = "key-of-the-operator"
    service = deployment.start(
        "--no-warden",
        tenants=deployment.tenants("acme", "bolt"),
        admin={"api_key_sha256": [hashlib.sha256(admin.encode()).hexdigest()]},
        server={"port": 0, "metrics": "admin"},
    )
    with running(lambda: service.turn("s", say(hold="held"), key="key-of-bolt")):
        simulator.wait_for(held=1)
        whole, own = (service.get("/v1/status?history", key=key).json for key in (admin, "key-of-acme"))
        metrics = {key: service.get("/metrics", key=key).status for key in (None, "key-of-bolt", admin)}
        sessions = service.get("/v1/sessions", key=admin)
        simulator.release("held")

    assert (whole["busy"], whole["tenants"]["bolt"]["busy"], whole["pool"]["resident"]) == (1, 1, 1)
    assert (own["busy"], own["tenants"], own["pool"]["resident"], own["memory"]["total_bytes"]) == (0, {}, 0, 0)
    assert own["pool"]["refusals"] is None
    assert "history" in whole
    assert "history" not in own
    assert metrics == {None: 401, "key-of-bolt": 401, admin: 200}
    assert sessions.status == 401


def test_what_the_command_line_sets_holds_in_every_profile(deployment: Deployment) -> None:
    """`--set limits.turn_timeout` is the limit of the turn, and the report says where it came from."""
    service = deployment.start("--no-warden", "--set", "limits.turn_timeout=3s", "--set", "limits.tool_timeout=2s")

    answer = service.turn("s", say(fault="hang"))

    assert (answer.status, answer.code) == (504, "turn_timeout")
    limit = answer.json["agentao_gov"]["limits"]["turn_timeout"]
    assert limit == {"value": 3.0, "source": "--set limits.turn_timeout"}


def test_a_limit_that_no_profile_has_is_refused_at_the_start(deployment: Deployment) -> None:
    """In silence it would be a limit that the operator believes in."""
    service = deployment.launch("--no-warden", "--set", "limits.nonsense=3s")

    assert service.wait() == 3
    assert "limits.nonsense" in service.log.read_text()
