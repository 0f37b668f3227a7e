"""The program's own HTTP client: blocking, one connection a request, and a service's contract on top of it.

It knows the contract alone, so that a foreign service can be asked too. No proxy of the environment is asked and no
redirect is followed: a key is for the host it was given for.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from agentao_gov.process.owner import host_token

_P = ParamSpec("_P")
#: A service's longest document is far smaller; whoever listens elsewhere may never end his answer.
BODY_BYTES_MAX = 64 * 2**20

#: The ways into a service. A limit that holds at one of them only is none.
Door = Literal["turns", "turns stream", "chat", "chat stream"]
DOORS: tuple[Door, ...] = ("turns", "chat", "turns stream", "chat stream")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One HTTP answer, and how long it took. `status` 0: the connection failed, `error` says how."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    elapsed_s: float = 0.0
    error: str = ""

    @property
    def code(self) -> str:
        """The error's `code`, or the report's outcome."""
        if isinstance(self.body, dict):
            error = self.body.get("error")
            if isinstance(error, dict):
                return str(error.get("code"))
            return str(self.report.get("outcome", ""))
        return ""

    @property
    def report(self) -> dict[str, Any]:
        """The TurnReport, wherever it stands."""
        if not isinstance(self.body, dict):
            return {}
        inner = self.body.get("agentao_gov")
        return inner if isinstance(inner, dict) else self.body

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The objects of a list, as OpenAI's interface has them under `data`."""
        rows = self.body.get("data") if isinstance(self.body, dict) else None
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    @property
    def is_html(self) -> bool:
        """Whether it is a page for people: then this is another kind of service."""
        return "html" in self.headers.get("content-type", "").lower()

    @property
    def answered(self) -> bool:
        """Whether the turn has an answer."""
        return self.status == 200 and bool(self.report.get("answer"))

    @property
    def retry_after_s(self) -> float | None:
        """What the header says; None without one, or with one that is no number."""
        try:
            return float(self.headers["retry-after"])
        except (KeyError, ValueError):
            return None

    def __str__(self) -> str:
        if not self.status:
            return f"no answer ({self.error})"
        wait = f", Retry-After {self.headers['retry-after']}" if "retry-after" in self.headers else ""
        return f"{self.status} {self.code}{wait} after {self.elapsed_s:.2f} s"


class Scrape:
    """One scrape of `/metrics`. Raises ValueError for a text that is none."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        """The sum over the samples of this name that carry these labels; None when there is none."""
        wanted = labels.items()
        found = [value for have, value in self.labelled(name) if wanted <= have.items()]
        return sum(found) if found else None

    def labelled(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """Every sample of this name, as its labels and its value."""
        return ((dict(labels), value) for (known, labels), value in self.samples.items() if known == name)


def exchange(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> HttpAnswer:
    """Sends one request and reads the whole answer. Never raises: a connection that fails is an observation too.

    Args:
        url: scheme, host, port and what `path` is appended to.
        method: the HTTP method.
        path: from the end of `url`'s path, with its slash.
        body: sent as JSON; None sends nothing.
        key: sent as a bearer token.
        headers: further headers.
        timeout_s: for connecting and for each read.
    """
    sent = {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
    began = time.monotonic()
    try:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, parts.path.rstrip("/") + path, text, sent)
            response = connection.getresponse()
            raw = response.read(BODY_BYTES_MAX)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return HttpAnswer(0, elapsed_s=time.monotonic() - began, error=f"{type(error).__name__}: {error}")
    known = {name.lower(): value for name, value in response.getheaders()}
    streamed = known.get("content-type", "").startswith("text/event-stream")
    found = _last_event(raw) if streamed else _parse(raw)
    return HttpAnswer(response.status, known, found, time.monotonic() - began)


class ServiceClient:
    """One tenant's access to a service at `base_url`, with or without its `/v1`. Thread-safe."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        """`base_url`: with or without `/v1`; `api_key`: the tenant's, None where none is needed."""
        self.base_url = base_url.rstrip("/")
        self._root = self.base_url.removesuffix("/v1")
        self._api_key = api_key

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> HttpAnswer:
        """Sends a request by `method` to a `path` from the service's root; the rest as `exchange` takes it."""
        return exchange(self._root, method, path, body, key=self._api_key, headers=headers, timeout_s=timeout_s)

    def turn(
        self,
        session: str,
        message: str,
        *,
        profile: str,
        user: str = "u",
        timeout_s: float = 60.0,
        door: Door = "turns",
    ) -> HttpAnswer:
        """One turn of a session. A streamed answer is read to its end; its last event is the body.

        Args:
            session: the session's id.
            message: what is asked.
            profile: what the turn is run under.
            user: whose turn it is.
            timeout_s: for connecting and for each read.
            door: the endpoint, and whether the answer is streamed.
        """
        if door.startswith("turns"):
            path, headers = f"/v1/sessions/{session}/turns", {}
            body: dict[str, Any] = {"message": message, "profile": profile, "user": user}
            if door == "turns stream":
                headers = {"Accept": "text/event-stream"}
        else:
            path, headers = "/v1/chat/completions", {"X-Session-Id": session}
            messages = [{"role": "user", "content": message}]
            body = {"model": profile, "user": user, "messages": messages, "stream": door == "chat stream"}
        return self.request("POST", path, body, timeout_s=timeout_s, headers=headers)

    def delete(self, session: str) -> HttpAnswer:
        """Removes a session."""
        return self.request("DELETE", f"/v1/sessions/{session}")

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The tenant's sessions by id."""
        return {str(row.get("id")): row for row in self.request("GET", "/v1/sessions?limit=1000").rows}

    def status(self, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """The status document; empty when it cannot be had."""
        answer = self.request("GET", "/v1/status", timeout_s=timeout_s)
        return answer.body if answer.status == 200 and isinstance(answer.body, dict) else {}

    def serving_pids(self, *, timeout_s: float = 5.0) -> list[int] | None:
        """The service's own processes, as it names them itself, one a worker.

        Empty where they are not on this machine, and None where the service does not say. Whoever listens on a port may
        be a proxy, or a stranger beside a service elsewhere.
        """
        instance = self.status(timeout_s=timeout_s).get("instance")
        if not isinstance(instance, dict) or not isinstance(instance.get("pid"), int):
            return None
        pids = instance.get("pids") or [instance["pid"]]
        return list(pids) if instance.get("host") == host_token() else []

    def metrics(self, *, timeout_s: float = 30.0) -> Scrape:
        """A scrape; empty when it cannot be had."""
        answer = self.request("GET", "/metrics", timeout_s=timeout_s)
        text = answer.body if answer.status == 200 and isinstance(answer.body, str) else ""
        try:
            return Scrape(text)
        except ValueError:
            return Scrape("")


def in_background(ask: Callable[_P, HttpAnswer], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[HttpAnswer]:
    """The same request on a thread of its own: `in_background(client.turn, "s-1", "Hello.", profile="qa")`."""
    future: Future[HttpAnswer] = Future()

    def run() -> None:
        try:
            future.set_result(ask(*args, **kwargs))
        except Exception as error:
            # Whoever waits must not wait for ever.
            future.set_exception(error)

    threading.Thread(target=run, name="probe-request", daemon=True).start()
    return future


def _parse(raw: bytes) -> Any:
    text = raw.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except ValueError:
        return text


def _last_event(raw: bytes) -> Any:
    """What a stream ended with: the TurnReport, or an error. Chunks of text before it are not kept."""
    last: Any = None
    for line in raw.decode("utf-8", "replace").splitlines():
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            event = _parse(data.encode())
            if isinstance(event, dict) and event.keys() & {"agentao_gov", "error", "outcome"}:
                last = event
    return last
