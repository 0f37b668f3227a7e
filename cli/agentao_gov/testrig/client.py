"""The probes' view of a service: its HTTP contract and nothing else, so that a foreign service can be walked too."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["DOORS", "Answer", "Door", "Metrics", "ServiceClient", "asked", "in_background"]

_P = ParamSpec("_P")

#: The ways into a service. A limit that holds at one of them only is none.
Door = Literal["turns", "turns stream", "chat", "chat stream"]
DOORS: tuple[Door, ...] = ("turns", "chat", "turns stream", "chat stream")


@dataclass(frozen=True, slots=True)
class Answer:
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


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.names: set[str] = set()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.names.add(sample.name)
                self.samples[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def get(self, name: str, **labels: str) -> float | None:
        """The sum over samples that carry these labels; None when there is none."""
        wanted = set(labels.items())
        found = [value for (n, have), value in self.samples.items() if n == name and wanted <= set(have)]
        return sum(found) if found else None


class ServiceClient:
    """One tenant's access. Thread-safe: each request has its own connection."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url)
        self.base_url = base_url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._api_key = api_key

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout_s: float = 30.0,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Sends one request; never raises, as a connection that fails is an observation too."""
        sent = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout_s)
        began = time.monotonic()
        try:
            connection.request(
                method, self._prefix + path, None if body is None else json.dumps(body), {**sent, **(headers or {})}
            )
            response = connection.getresponse()
            raw = response.read()
            known = {name.lower(): value for name, value in response.getheaders()}
            streamed = known.get("content-type", "").startswith("text/event-stream")
            body_read = _last_event(raw) if streamed else _parse(raw)
            return Answer(response.status, known, body_read, time.monotonic() - began)
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, elapsed_s=time.monotonic() - began, error=f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def turn(
        self,
        session: str,
        message: str,
        *,
        profile: str,
        user: str = "u",
        timeout_s: float = 60.0,
        door: Door = "turns",
    ) -> Answer:
        """One turn of a session. A streamed answer is read to its end; its last event is the body."""
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

    def delete(self, session: str) -> Answer:
        """Removes a session."""
        return self.request("DELETE", f"/v1/sessions/{session}")

    def sessions(self) -> dict[str, dict[str, Any]]:
        """The tenant's sessions by id."""
        answer = self.request("GET", "/v1/sessions")
        rows = answer.body.get("data", []) if isinstance(answer.body, dict) else []
        return {str(row.get("id")): row for row in rows if isinstance(row, dict)}

    def status(self) -> dict[str, Any]:
        """The status document; empty when it cannot be had."""
        answer = self.request("GET", "/v1/status")
        return answer.body if answer.status == 200 and isinstance(answer.body, dict) else {}

    def metrics(self) -> Metrics:
        """A scrape; empty when it cannot be had."""
        answer = self.request("GET", "/metrics")
        text = answer.body if answer.status == 200 and isinstance(answer.body, str) else ""
        try:
            return Metrics(text)
        except ValueError:
            return Metrics("")


def in_background(ask: Callable[_P, Answer], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[Answer]:
    """The same request on a thread of its own: `in_background(client.turn, "s-1", "Hello.", profile="qa")`."""
    future: Future[Answer] = Future()

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


_ANSWER_S_MAX = 5.0


@contextlib.contextmanager
def asked(
    url: str, path: str, key: str | None = None, *, timeout_s: float = _ANSWER_S_MAX
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET of `path` at the host of `url`, its body unread. Raises OSError, HTTPException, ValueError.

    No proxy of the environment is asked and no redirect is followed: the key is for this host alone.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        yield connection.getresponse()
    finally:
        connection.close()
