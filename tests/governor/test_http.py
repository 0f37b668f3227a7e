"""A model call's socket can be shut down from another thread, at every stage of the call."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from agentao_gov.errors import ConfigError
from agentao_gov.governor import Outcome
from agentao_gov.governor.http import AbortScope, HttpClient, abortable
from tests.governor.harness import Harness, say

#: An abort takes milliseconds; a call that is not woken hangs for ever.
GUARD_S = 5.0
#: Descriptors, more than the 1,024 that `select.select` can watch.
MANY = 1_100


class Peer:
    """A TCP peer that does what the test says, and says when a client is there."""

    def __init__(self, behave: Callable[[socket.socket], object], clients: int) -> None:
        self._clients = clients
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.met = threading.Event()
        self.gone = threading.Event()
        self._behave = behave
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(self._clients):
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(GUARD_S)
                with contextlib.suppress(OSError):
                    self._behave(connection)
                    self.met.set()
                    while connection.recv(65536):
                        pass
                self.gone.set()

    def close(self) -> None:
        self._server.close()
        self._thread.join(GUARD_S)


@contextlib.contextmanager
def peer(behave: Callable[[socket.socket], object], *, clients: int = 1) -> Iterator[Peer]:
    running = Peer(behave, clients)
    try:
        yield running
    finally:
        running.close()


def request_aborted(http: HttpClient, url: str, ready: threading.Event) -> tuple[BaseException | None, AbortScope]:
    """Makes a request on a thread, aborts it when the peer is ready, and returns what the request raised."""
    scope = AbortScope()
    raised: list[BaseException] = []

    def call() -> None:
        try:
            with abortable(scope), http._client.stream("POST", url, content=b"{}", timeout=60.0) as response:
                for _ in response.iter_raw():
                    pass
        except httpx2.HTTPError as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert ready.wait(GUARD_S)
    scope.abort()
    thread.join(GUARD_S)
    assert not thread.is_alive()
    return (raised[0] if raised else None), scope


def test_a_call_without_a_first_byte_is_woken(http: HttpClient) -> None:
    """agentao's own cancel is only looked at between chunks."""
    with peer(lambda connection: connection.recv(65536)) as silent:
        error, scope = request_aborted(http, f"http://127.0.0.1:{silent.port}/", silent.met)

        assert error is not None
        assert scope.sent
        assert silent.gone.wait(GUARD_S)


def test_a_stream_that_stalls_is_woken(http: HttpClient) -> None:
    """After the head and a first chunk the peer says nothing more."""

    def stall(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")

    with peer(stall) as stalling:
        error, _ = request_aborted(http, f"http://127.0.0.1:{stalling.port}/", stalling.met)

        assert error is not None


def test_a_tls_handshake_that_is_never_answered_is_woken(http: HttpClient) -> None:
    """The socket is registered before the handshake, and nothing counts as sent."""
    with peer(lambda connection: connection.recv(1, socket.MSG_PEEK)) as mute:
        error, scope = request_aborted(http, f"https://127.0.0.1:{mute.port}/", mute.met)

        assert error is not None
        assert not scope.sent


def test_a_tls_stream_that_stalls_is_woken(tmp_path: Path) -> None:
    """The wrapped socket is another object than the one that was connected."""
    server, client = tls_contexts(tmp_path)
    http = HttpClient(verify=client)

    def stall(connection: socket.socket) -> None:
        tls = server.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        tls.do_handshake()
        tls.recv(65536)
        tls.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        stalling.met.set()
        with contextlib.suppress(OSError):
            tls.recv(1)
        tls.close()

    with peer(stall) as stalling:
        error, _ = request_aborted(http, f"https://127.0.0.1:{stalling.port}/", stalling.met)

        assert error is not None
    http.close()


def test_a_connection_that_is_never_accepted_is_woken(http: HttpClient) -> None:
    """A full backlog drops the handshake's packets: the connect hangs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        ready = threading.Event()
        ready.set()

        error, scope = request_aborted(http, f"http://127.0.0.1:{port}/", ready)

    assert error is not None
    assert not scope.sent


def test_a_name_that_is_never_resolved_is_woken(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The C library's resolver cannot be interrupted, so its thread is left behind."""
    asked, release = threading.Event(), threading.Event()
    real = socket.getaddrinfo

    def hang(host: object, *arguments: object, **options: object) -> object:
        if host == "model.invalid":
            asked.set()
            release.wait(GUARD_S * 2)
        return real(host, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    error, scope = request_aborted(http, "http://model.invalid/", asked)

    release.set()
    assert error is not None
    assert not scope.sent


def test_an_aborted_scope_lets_nothing_out(http: HttpClient) -> None:
    """A cancel that comes before the call must not be lost."""
    scope = AbortScope()
    scope.abort()

    with (
        peer(lambda connection: None) as waiting,
        abortable(scope),
        pytest.raises(httpx2.HTTPError),
    ):
        http._client.post(f"http://127.0.0.1:{waiting.port}/", content=b"{}", timeout=GUARD_S)


def test_aborting_one_call_leaves_the_others_alone(http: HttpClient) -> None:
    """All calls of the process share the client."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        release.wait(GUARD_S)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    release = threading.Event()
    with peer(answer) as healthy, peer(lambda connection: connection.recv(65536)) as silent:
        answers: list[str] = []
        other = threading.Thread(
            target=lambda: answers.append(http._client.get(f"http://127.0.0.1:{healthy.port}/").text), daemon=True
        )
        other.start()
        request_aborted(http, f"http://127.0.0.1:{silent.port}/", silent.met)
        release.set()
        other.join(GUARD_S)

    assert answers == ["ok"]


def test_a_refused_connection_says_so_at_once(http: HttpClient) -> None:
    """An endpoint that is not there is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()

    with pytest.raises(httpx2.ConnectError, match="refused"):
        http._client.get(f"http://127.0.0.1:{port}/")

    assert time.monotonic() - began < GUARD_S


def tls_contexts(where: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server context with a fresh certificate for 127.0.0.1, and a client context that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = where / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode())


def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with a transport of its own ignores them, and whoever sits behind a proxy reaches no model."""
    asked: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).split(b"\r\n")[0])
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        connection.shutdown(socket.SHUT_WR)

    with peer(answer) as proxy, peer(answer) as local:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "intern.example")
        behind = HttpClient()

        answers = [
            behind._client.get("http://model.example/v1/models", timeout=GUARD_S).text,
            behind._client.get(f"http://127.0.0.1:{local.port}/v1/models", timeout=GUARD_S).text,
        ]

        behind.close()
    assert answers == ["ok", "ok"]
    assert asked == [b"GET http://model.example/v1/models HTTP/1.1", b"GET /v1/models HTTP/1.1"]


@pytest.mark.parametrize(
    "entry",
    ["localhost,127.0.0.1,::1", "[::1]", "::1/128", "fd00::/8", "10.0.0.0/8", ".example", "*.example", "a b", "["],
)
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_every_form_of_no_proxy_is_taken(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, variable: str, entry: str
) -> None:
    """`localhost,127.0.0.1,::1` is the commonest there is, and nothing started with it."""
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", entry)

    with contextlib.closing(HttpClient()) as client:
        session = harness.open(options={"http": client})
        report = harness.ask(session, say(text="hi"))

    assert report.answer == "hi"


def test_a_host_of_no_proxy_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 networks among them."""
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "::1,fd00::1,intern.example")

    with contextlib.closing(HttpClient()) as client:
        direct = {
            host: client._client._transport_for_url(httpx2.URL(f"https://{host}/v1")) is client._client._transport
            for host in ("[::1]", "[fd00::1]", "intern.example", "a.intern.example", "model.example")
        }

    assert direct == {"[::1]": True, "[fd00::1]": True, "intern.example": True, "a.intern.example": True} | {
        "model.example": False
    }


@pytest.mark.parametrize(
    ("proxy", "why"), [("socks5://127.0.0.1:1080", "agentao-gov[socks]"), ("ftp://u:hunter2@x:1", "ftp://...")]
)
def test_a_proxy_that_cannot_be_used_is_an_error_of_the_addresses_behind_it_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, proxy: str, why: str
) -> None:
    """A model on this machine works; another one says what to install, before anything is sent, and no password."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)

    with contextlib.closing(HttpClient()) as client:
        report = harness.ask(harness.open(options={"http": client}), say(text="hi"))
        with pytest.raises(ConfigError) as refused:
            harness.open("s2", options={"http": client}, base_url="https://model.example/v1")

    assert report.answer == "hi"
    assert why in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "requests", "words"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", 1, "407 Proxy Authentication"),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 2, "503 Service Unavailable"),
        (b"", 2, "cannot be reached"),
        (b"HTTP/1.1 200 Connection established\r\n\r\nno TLS at all", 2, "cannot be reached"),
    ],
)
def test_what_fails_at_a_proxy_is_not_charged(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, answer: bytes, requests: int, words: str
) -> None:
    """The model got nothing: 40,005 tokens stood in the ledger for three refusals. A refusal is not tried again."""
    asked: list[bytes] = []

    def refuse(connection: socket.socket) -> None:
        asked.append(connection.recv(65_536))
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    with peer(refuse, clients=requests) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        with contextlib.closing(HttpClient()) as client:
            options, limits = {"http": client}, {"llm_retries": 1}
            session = harness.open(options=options, base_url="https://model.example/v1", limits=limits)
            report = harness.ask(session, "hi")

    assert report.outcome == Outcome.MODEL_ERROR
    assert words in str(report.operator_detail)
    assert (report.usage.total_tokens, report.usage.llm_calls) == (0, 0)
    assert harness.used(report) == (0, 0)
    assert [line.split(b"\r\n")[0] for line in asked] == [b"CONNECT model.example:443 HTTP/1.1"] * requests


@pytest.mark.parametrize(
    ("arrived", "answered"), [(b"", False), (b"HTTP/1.1 200 OK\r\n\r\n: wait\n\n", False), (b"data: {}\n\n", True)]
)
def test_an_answer_that_nobody_has_read_yet_is_seen_by_the_abort(arrived: bytes, answered: bool) -> None:
    """Else a call cut on a busy machine counts as one that the model had not begun to answer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # As long as a reader may wait; the look must not.
        ours.settimeout(GUARD_S)
        scope = AbortScope()
        scope.add(ours)
        theirs.sendall(arrived)

        scope.abort()

        assert scope.answered == answered


def test_a_turn_works_beside_more_descriptors_than_select_knows(harness: Harness) -> None:
    """1,100 clients that keep their connections are enough for it, and then every model call failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MANY + 1_000)), hard))
    tools = {"permission_mode": "full-access", "allow": ["run_shell_command"]}
    session = harness.open(tools=tools)
    with contextlib.ExitStack() as held:
        held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(MANY):
            held.enter_context(Path(os.devnull).open("rb"))

        report = harness.ask(
            session, say(text="after", tool={"name": "run_shell_command", "args": {"command": "echo hi"}})
        )

    assert (report.outcome, report.answer) == (Outcome.ANSWERED, "after"), report.operator_detail
    assert [call.outcome for call in report.tool_calls] == ["ok"]
