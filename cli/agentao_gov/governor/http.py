"""One HTTP client for every model call of the process, whose sockets can be shut down from another thread.

`close()` does not wake a thread that waits in `recv`; `shutdown()` does. So each call registers its sockets with an
`AbortScope`, from the name look-up on, and aborting the scope ends the call within milliseconds: while it connects,
shakes hands, waits for the first byte, or in mid-stream. openai 3.x sits on httpx2/httpcore2, whose network back end is
a public seam.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator

import httpcore2
import httpx2
import openai
from httpx2._utils import get_environment_proxies

from agentao_gov.errors import ConfigError
from agentao_gov.governor import sdk_import
from agentao_gov.governor.classify import NotAModelError

#: What every event of a streamed answer begins with; a head and a gateway's comments are no sign of work.
_EVENT = b"data:"
#: How the request for a tunnel begins, which goes to a proxy and no further. A model's begins with POST and then "{".
_TO_PROXY = b"CONNECT "
_PATH = "/chat/completions"
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
#: How much of what nobody has read is looked at: more than a head and a first event.
_PEEK_BYTES = 65_536
#: A packed stream would hold events back that the model has long produced, and hide that any came.
_PLAIN = {"Accept-Encoding": "identity"}
#: A connect that is being aborted is noticed after this long; only while the TCP handshake is under way.
_CONNECT_POLL_S = 0.05
#: Longest wait for a TCP connection or TLS handshake, whatever the turn's deadline.
CONNECT_S_MAX = 10.0
#: From http to https, and to where the API has moved; more than that is a circle.
_REDIRECTS_MAX = 3
#: What any answer may have: an error page, or one event that a gateway made large.
ANSWER_BYTES_MIN = 4 * 2**20
#: What of an answer is held at once. A step of unpacking must not make a gigabyte of a megabyte.
_PIECE_BYTES = 65_536
#: The context of TLS handshakes, made when the first is needed.
Trust = Callable[[], ssl.SSLContext]
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class AbortScope:
    """The sockets of one model call. `abort` may come from any thread, any number of times.

    `answer_bytes_max` says how many bytes its answer may have, or, where `by_event`, one event of a streamed answer.
    """

    def __init__(
        self, answer_bytes_max: Callable[[], int] = lambda: ANSWER_BYTES_MIN, *, by_event: bool = False
    ) -> None:
        self.answer_bytes_max = answer_bytes_max
        self.by_event = by_event
        self._lock = threading.Lock()
        # Under `_lock`: open sockets of this call.
        self._sockets: set[socket.socket] = set()
        # Under `_lock`: callbacks that wake a wait which has no socket yet (name look-up).
        self._wakers: set[Callable[[], None]] = set()
        self.aborted = threading.Event()
        #: Whether any byte of a request was handed to the network: what was not sent costs nothing.
        self.sent = False
        #: Whether any of an answer's events has come, read or not: then the model was at work before the cut.
        self.answered = False

    def add(self, sock: socket.socket) -> None:
        """Registers a socket; shut down at once if the scope is already aborted."""
        with self._lock:
            self._sockets.add(sock)
        if self.aborted.is_set():
            _shut(sock)

    def discard(self, sock: socket.socket) -> None:
        """Forgets a socket that was closed or replaced."""
        with self._lock:
            self._sockets.discard(sock)

    @contextlib.contextmanager
    def waking(self, waker: Callable[[], None]) -> Iterator[None]:
        """Calls `waker` when the scope is aborted within the block."""
        with self._lock:
            self._wakers.add(waker)
        if self.aborted.is_set():
            waker()
        try:
            yield
        finally:
            with self._lock:
                self._wakers.discard(waker)

    def abort(self) -> None:
        """Ends whatever the call waits for."""
        self.aborted.set()
        with self._lock:
            sockets, wakers = list(self._sockets), list(self._wakers)
        for waker in wakers:
            waker()
        for sock in sockets:
            self.answered = self.answered or _unread(sock)
            _shut(sock)


_SCOPE: contextvars.ContextVar[AbortScope | None] = contextvars.ContextVar("agentao_gov_abort_scope", default=None)


@contextlib.contextmanager
def abortable(scope: AbortScope) -> Iterator[AbortScope]:
    """Requests made in the block, on this thread, belong to the scope."""
    reset = _SCOPE.set(scope)
    try:
        yield scope
    finally:
        _SCOPE.reset(reset)


def _unread(sock: socket.socket) -> bool:
    """Whether an event has arrived that nobody has taken yet; on a busy machine a whole answer may wait there."""
    try:
        # Through an object of its own, which has no time-out: the socket's own would make even a peek wait.
        with socket.socket(fileno=os.dup(sock.fileno())) as view:
            found = view.recv(_PEEK_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (OSError, ValueError):
        return False
    # What TLS would make of the bytes is not known here: they count as an event.
    return bool(found) if isinstance(sock, ssl.SSLSocket) else _EVENT in found


def _shut(sock: socket.socket) -> None:
    # The plain socket's method also for a TLS socket: SSLSocket.shutdown drops its SSL object under the reader's feet.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _WatchedStream(httpcore2.NetworkStream):
    """A socket that its scope can shut down."""

    def __init__(self, sock: socket.socket, scope: AbortScope | None, trust: Trust) -> None:
        self._sock = sock
        self._scope = scope
        self._trust = trust
        if scope is not None:
            scope.add(sock)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._sock.settimeout(timeout)
            found = self._sock.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore2.ReadTimeout(str(error)) from error
        except (OSError, ValueError) as error:
            raise httpcore2.ReadError(str(error)) from error
        if self._scope is not None and not self._scope.answered and _EVENT in found:
            self._scope.answered = True
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._scope is not None and not buffer.startswith(_TO_PROXY):
            self._scope.sent = True
        try:
            self._sock.settimeout(timeout)
            self._sock.sendall(buffer)
        except TimeoutError as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        except (OSError, ValueError) as error:
            raise httpcore2.WriteError(str(error)) from error

    def close(self) -> None:
        if self._scope is not None:
            self._scope.discard(self._sock)
        self._sock.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,  # noqa: ARG002 - it knows no authority; ours is made when one is needed
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        if isinstance(self._sock, ssl.SSLSocket):
            raise httpcore2.ConnectError("An HTTPS proxy in front of an HTTPS model is not supported.")
        scope = self._scope
        try:
            self._sock.settimeout(timeout)
            # The handshake comes after the registration: wrapping takes the descriptor away from the plain socket,
            # and a peer that accepts and then says nothing would hold a thread that nobody can wake.
            tls = self._trust().wrap_socket(self._sock, server_hostname=server_hostname, do_handshake_on_connect=False)
        except OSError as error:
            self.close()
            raise httpcore2.ConnectError(str(error)) from error
        if scope is not None:
            scope.discard(self._sock)
        stream = _WatchedStream(tls, scope, self._trust)
        try:
            tls.do_handshake()
        except TimeoutError as error:
            stream.close()
            raise httpcore2.ConnectTimeout(str(error)) from error
        except (OSError, ValueError) as error:
            stream.close()
            raise httpcore2.ConnectError(str(error)) from error
        return stream

    def get_extra_info(self, info: str) -> typing.Any:
        match info:
            case "ssl_object":
                return self._sock._sslobj if isinstance(self._sock, ssl.SSLSocket) else None  # type: ignore[attr-defined]
            case "client_addr":
                return self._sock.getsockname()
            case "server_addr":
                return self._sock.getpeername()
            case "socket":
                return self._sock
            case "is_readable":
                return self._sock.fileno() < 0 or _ready(self._sock, select.POLLIN, 0)
        return None


class _Backend(httpcore2.NetworkBackend):
    """Connects so that every wait on the way can be ended."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.NetworkStream:
        scope = _SCOPE.get()
        until = time.monotonic() + (CONNECT_S_MAX if timeout is None else timeout)
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for family, kind, proto, _, address in _resolve(host, port, until, scope):
            sock = socket.socket(family, kind, proto)
            try:
                for option in socket_options or ():
                    sock.setsockopt(*option)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if local_address is not None:
                    sock.bind((local_address, 0))
                _connect(sock, address, until, scope)
                return _WatchedStream(sock, scope, self._trust)
            except httpcore2.ConnectTimeout:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                failure = httpcore2.ConnectError(f"{host}:{port}: {error.strerror or error}")
        raise failure

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002 - the seam's signature
        socket_options: Iterable[SocketOption] | None = None,  # noqa: ARG002
    ) -> httpcore2.NetworkStream:
        raise httpcore2.ConnectError(f"A model on a Unix socket is not supported: {path}")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def _resolve(host: str, port: int, until: float, scope: AbortScope | None) -> list[typing.Any]:
    """Looks a name up. The C library's resolver cannot be interrupted, so the wait is on a thread that may be left."""
    if host == "localhost" or _is_address(host):
        try:
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host}: {error.strerror or error}") from error
    done = threading.Event()
    found: list[typing.Any] = []
    failed: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            failed.append(error)
        done.set()

    threading.Thread(target=look_up, name=f"resolve-{host}", daemon=True).start()
    with scope.waking(done.set) if scope is not None else contextlib.nullcontext():
        done.wait(max(0.0, until - time.monotonic()))
    if scope is not None and scope.aborted.is_set():
        raise httpcore2.ConnectError("aborted")
    if failed:
        raise httpcore2.ConnectError(f"{host}: {failed[0].strerror or failed[0]}")
    if not found:
        raise httpcore2.ConnectTimeout(f"{host}: the name was not resolved in time")
    return list(found)


def _ready(sock: socket.socket, event: int, within_s: float) -> bool:
    """Whether a socket can be read or written. `select.select` refuses descriptors from 1,024 on."""
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(within_s * 1000))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _connect(sock: socket.socket, address: typing.Any, until: float, scope: AbortScope | None) -> None:
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise httpcore2.ConnectTimeout("no connection in time") from None
            if scope is not None and scope.aborted.is_set():
                raise ConnectionAbortedError("aborted") from None
            if _ready(sock, select.POLLOUT, min(_CONNECT_POLL_S, left)):
                break
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None
    sock.setblocking(True)


class _BoundedBody(httpx2.SyncByteStream):
    """An answer's body, unpacked, that ends with an error before it fills the memory.

    A gateway that never ends would: what is JSON is held whole until it can be parsed, an event until its blank line.
    """

    def __init__(self, response: httpx2.Response, scope: AbortScope) -> None:
        assert isinstance(response.stream, httpx2.SyncByteStream)
        self._body = response.stream
        self._scope = scope
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        self._by_event = scope.by_event and streamed and response.is_success
        # Unpacked here, because httpx would unpack a whole part at once. It was asked for plain text.
        self._packed = response.headers.pop("content-encoding", "identity").strip().lower()

    def __iter__(self) -> Iterator[bytes]:
        held, tail = 0, b""
        for part in self._unpacked():
            held += len(part)
            if self._by_event:
                seen = tail + part
                ended = max(seen.rfind(blank) + len(blank) if blank in seen else 0 for blank in _BLANK_LINES)
                held, tail = (len(seen) - ended if ended else held), seen[-3:]
            if held > (bound := self._scope.answer_bytes_max()):
                # Nobody can tell what of it a model made.
                self._scope.answered = True
                raise NotAModelError(f"{'an event' if self._by_event else 'an answer'} of more than {bound:,} bytes")
            yield part

    def _unpacked(self) -> Iterator[bytes]:
        if self._packed in {"identity", ""}:
            yield from self._body
            return
        if self._packed not in {"gzip", "x-gzip", "deflate"}:
            raise NotAModelError(f"text packed as {self._packed[:20]!r}")
        # Either of the two formats, whichever header stands there.
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            for part in self._body:
                while part:
                    yield unpack.decompress(part, _PIECE_BYTES)
                    part = unpack.unconsumed_tail
        except zlib.error as error:
            raise httpx2.DecodingError(str(error)) from error

    def close(self) -> None:
        self._body.close()


class _Transport(httpx2.HTTPTransport):
    """Requests whose answers are bounded by the scope they belong to."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        response.stream = _BoundedBody(response, _SCOPE.get() or AbortScope())
        return response


def _trusting() -> ssl.SSLContext:
    """The TLS context of the process. One for all: each costs 33 ms and 0.6 MB (measured with openai 3.54)."""
    context = httpx2.create_ssl_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _transport(trust: Trust, proxy: str | None = None) -> httpx2.HTTPTransport:
    # No keep-alive: openai 3.54 closes the response right after `[DONE]`, so a streamed call's connection is never
    # reused anyway, and a socket that belongs to one call alone is what makes aborting it safe.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    # A context that trusts nobody: whatever did not come through `_WatchedStream.start_tls` would fail.
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport = _Transport(verify=nobody, limits=limits, proxy=proxy)
    transport._pool._network_backend = _Backend(trust)  # type: ignore[attr-defined,union-attr,unused-ignore]
    return transport


class _UnusableProxy(httpx2.BaseTransport):
    """Stands for a proxy that cannot be had: only an address that would go through it is refused."""

    def __init__(self, why: str) -> None:
        self.why = why

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ProxyError(self.why, request=request)


def _through(trust: Trust, proxy: str) -> httpx2.BaseTransport:
    scheme = proxy.partition("://")[0]
    try:
        return _transport(trust, proxy)
    except ImportError:
        return _UnusableProxy(f"A {scheme} proxy needs a package: pip install 'agentao-gov[socks]'.")
    except (ValueError, httpx2.InvalidURL):
        # Without its text, which may hold a password.
        return _UnusableProxy(f"The environment names a proxy that is none of http, https and socks5: {scheme}://...")


def _environment_proxies(trust: Trust) -> dict[str, httpx2.BaseTransport | None]:
    """Transports for the proxies that the environment names; a client with its own transport would ignore them.

    httpx knows the forms that NO_PROXY takes (IPv6 with and without brackets, networks, hosts, domains).
    """
    found = get_environment_proxies()
    mounts = {pattern: None if proxy is None else _through(trust, proxy) for pattern, proxy in found.items()}
    if any(mounts.values()):
        # This machine needs no proxy, and no proxy can reach it.
        mounts |= {"all://localhost": None, "all://127.0.0.1": None, "all://[::1]": None}
    return mounts


class HttpClient:
    """The process's HTTP client, and the OpenAI SDK objects that share it. Thread-safe."""

    def __init__(self, *, verify: ssl.SSLContext | None = None) -> None:
        sdk_import.hide_half_imported_httpx()
        # Made at the first handshake: a model on this machine needs none.
        trust = functools.cache(_trusting if verify is None else lambda: verify)
        self._client = openai.DefaultHttpxClient(
            transport=_transport(trust),
            mounts=_environment_proxies(trust),
            max_redirects=_REDIRECTS_MAX,
            timeout=httpx2.Timeout(CONNECT_S_MAX),
        )
        self._lock = threading.Lock()
        # Under `_lock`: SDK objects by endpoint and key; bounded by the endpoints and keys a deployment has.
        self._endpoints: dict[tuple[str, str], openai.OpenAI] = {}

    def endpoint(self, base_url: str, api_key: str) -> openai.OpenAI:
        """The SDK object for an endpoint and key."""
        with self._lock:
            found = self._endpoints.get((base_url, api_key))
            if found is None:
                found = openai.OpenAI(
                    api_key=api_key,
                    base_url=base_url,
                    max_retries=0,
                    http_client=self._client,
                    timeout=None,
                    default_headers=_PLAIN,
                )
                self._endpoints[base_url, api_key] = found
            return found

    def check(self, base_url: str) -> None:
        """Raises ConfigError for a `base_url` that no path can be put behind, or behind a proxy that is unusable."""
        address, query, _ = base_url.partition("?")
        if query:
            raise ConfigError("The model's base_url may have no query.", hint=f"Try {address}")
        if address.rstrip("/").endswith(_PATH):
            shorter = address.rstrip("/").removesuffix(_PATH)
            raise ConfigError(f"The model's base_url ends with {_PATH}, which is put behind it.", hint=f"Try {shorter}")
        transport = self._client._transport_for_url(httpx2.URL(base_url))
        if isinstance(transport, _UnusableProxy):
            raise ConfigError(transport.why, hint="Or name the model's host in NO_PROXY.")

    def close(self) -> None:
        """Closes idle connections; calls in flight end with an error."""
        self._client.close()


def timeout_for(remaining_s: float) -> httpx2.Timeout:
    """The time-outs of one request: nothing waits past the turn's deadline."""
    left = max(0.001, remaining_s)
    return httpx2.Timeout(left, connect=min(CONNECT_S_MAX, left))
