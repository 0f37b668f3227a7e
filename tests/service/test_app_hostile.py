"""Requests that nobody sends by accident: refused as what they are, and the next one is served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.e2e.raw import raw
from tests.pool.bench import eventually
from tests.pool.scripted import ScriptedHosts
from tests.service.live import Live

TURN = b'{"message": "remember x"}'
TURNS = "/v1/sessions/s/turns"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    made = Live(tmp_path_factory.mktemp("live"), ScriptedHosts())
    yield made
    eventually(lambda: made.counts() == (0, 0, 0), "every place and count back")
    made.close()


def post(headers: str, body: bytes = TURN, *, host: str = "127.0.0.1", path: str = TURNS) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode("latin-1") + body


LENGTH = f"Content-Length: {len(TURN)}\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100 + b"\r\n\r\n", {400}),
        (b"hello\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", {400}),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {400, 431}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", {400, 431}),
        (post("Content-Length: 5\r\nContent-Length: 25\r\n"), {400}),
        (post("Content-Length: -1\r\n"), {400}),
        (post("Content-Length: 1e3\r\n"), {400}),
        (post("Content-Length: 9999999999999999999999\r\n"), {400, 413}),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 25\r\n", b"19\r\n" + TURN + b"\r\n0\r\n\r\n"), {200, 400}),
        (post("Transfer-Encoding: gzip\r\n"), {400, 501}),
        (post("Transfer-Encoding: chunked\r\n", b"zz\r\n" + TURN), {400}),
        (post(LENGTH, host="evil.example"), {403}),
        (post(LENGTH + "Origin: https://evil.example\r\n"), {403}),
        (post(LENGTH + "Origin: null\r\n"), {403}),
        (post(LENGTH, path="/v1/sessions/a%0d%0aX-Evil:%201/turns"), {400, 404}),
        (post(LENGTH, path="/v1/sessions/..%2f..%2fetc/turns"), {400, 404}),
        (post(LENGTH, path="/v1/sessions/%00/turns"), {400}),
        (post(LENGTH, path="/v1/sessions/%ff/turns"), {400}),
        (post(LENGTH, path="/v1/sessions/" + "a" * 129 + "/turns"), {400}),
        (post(LENGTH, path="//v1/sessions/s/turns"), {404}),
        (post(LENGTH, path="/v1/sessions/s/turns/"), {404}),
        (b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {400, 404, 405}),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", {400, 404, 405}),
        (b"GET http://evil.example/v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n", {400, 403, 404}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 405, 505}),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", {200, 400}),
    ],
)  # fmt: skip
def test_a_hostile_request_is_refused_and_the_next_one_served(
    live: Live, request_bytes: bytes, statuses: set[int]
) -> None:
    """Never a 500, never a header of the client's making, and what is said is JSON in OpenAI's shape."""
    with raw(live) as client:
        client.sock.settimeout(3)
        client.sock.sendall(request_bytes)
        answer = HTTPResponse(client.sock)
        answer.begin()
        body = answer.read()

    assert answer.status in statuses, body[:300]
    assert "x-evil" not in answer.headers
    if answer.status >= 400:
        assert json.loads(body)["error"]["code"]
    assert live.get("/healthz").status == 200


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "after the answer"])
def test_a_body_that_breaks_off_is_answered_once_and_troubles_nobody(
    live: Live, caplog: pytest.LogCaptureFixture, pause: bool
) -> None:
    """Its request was refused before the body was read: there is one answer, and no traceback in the log."""
    head, broken = post("Transfer-Encoding: chunked\r\n", b"", path="/v1/nothing"), b"zz\r\n"
    with raw(live) as client:
        client.sock.sendall(head if pause else head + broken)
        answer = client.sock.recv(65536)
        if pause:
            client.sock.sendall(broken)
        answer += client.answer()

    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert live.get("/healthz").status == 200
    assert [record for record in caplog.records if record.exc_info] == []


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    """A turn, then a list, then nonsense: two answers and a 400, each whole."""
    with raw(live) as client:
        first = post(LENGTH)
        client.sock.sendall(first + b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + b"\x00\r\n\r\n")
        answer = client.answer()

    statuses = [int(part.split(b" ", 1)[0]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 400]


def test_ids_and_users_reach_neither_headers_nor_labels_unchecked(live: Live) -> None:
    """Control characters in a user's name are refused; odd but harmless names are served as they are."""
    body = {"message": "remember x", "user": "ann\r\nX-Evil: 1"}
    refused = live.post(TURNS, body)
    odd = live.post(TURNS, {"message": "remember x", "user": "änn <b>💡</b> ../.."})

    assert (refused.status, refused.code) == (400, "invalid_request")
    assert odd.status == 200
    assert odd.json["user"] == "änn <b>💡</b> ../.."


@pytest.mark.parametrize("session", [".", "..", "...", "-rf", "a:b", "CON", "x" * 128])
def test_session_ids_that_look_like_paths_stay_in_their_own_directory(live: Live, session: str) -> None:
    """They follow the rule, so they are sessions; what is written lies below the tenant's directory."""
    made = live.turn(session, "remember it")
    again = live.turn(session, "recall")
    names = {path.name for path in (live.archive.root / "t-default").iterdir()}

    assert (made.status, again.json["answer"]) == (200, "remember it")
    assert all(name.startswith("s-") for name in names)
    assert live.send("DELETE", f"/v1/sessions/{session}").json["deleted"] is True


def test_a_link_in_place_of_a_session_is_not_followed_out(live: Live, tmp_path: Path) -> None:
    """Whoever can write into the state directory is the operator; still, a delete must not reach through a link."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep me")
    (live.archive.root / "t-default").mkdir(exist_ok=True)
    (live.archive.root / "t-default" / "s-link").symlink_to(outside)

    live.send("DELETE", "/v1/sessions/link")

    assert (outside / "precious").read_text() == "keep me"
