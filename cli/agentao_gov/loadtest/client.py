"""One turn over HTTP from inside the generator's gevent process, timed where the bytes arrive.

Only the Locust process imports this module: geventhttpclient's `readline` gives each event the moment it is there.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient._parser import HTTPParseError

from agentao_gov.loadtest.record import UNSENT, ClientResult

_CONNECTIONS_MAX = 20_000
_CONNECT_TIMEOUT_S = 10.0
_BLOCK_BYTES = 16 * 1024
_ERROR_BODY_BYTES = 64 * 1024
#: What this machine lacked, not the service: descriptors, local ports, memory.
_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


class StreamReader:
    """Notes when text came in an event stream: first token, gaps, and how it ended. Microseconds since the send.

    It takes lines, not chunks: a reader that waits for 1,024 bytes reports a first token of 100 ms as 293 (locust
    2.47's helper). Role-only deltas, comments and empty deltas are no tokens. The caller brings the times.
    """

    def __init__(self, api: Literal["native", "openai"]) -> None:
        self._native = api == "native"
        self._event = ""
        self.first_text_us: int | None = None
        self._last_text_us = 0
        self._gap_sum_us = 0
        self._gaps = 0
        self.gap_max_us: int | None = None
        #: The TurnReport, where the service sent one.
        self.report: dict[str, Any] | None = None
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        #: The `code` of an error event.
        self.error: str | None = None

    @property
    def gap_mean_us(self) -> int | None:
        """Mean microseconds between texts; None with fewer than two."""
        return self._gap_sum_us // self._gaps if self._gaps else None

    @property
    def seen_text(self) -> bool:
        """Whether any text came."""
        return self.first_text_us is not None

    def line(self, raw: bytes, at_us: int) -> None:
        """Takes one line, `raw`, with or without its end, that came `at_us` microseconds after the send."""
        line = raw.rstrip(b"\r\n")
        if not line:
            self._event = ""
        elif line.startswith(b"data:"):
            self._data(line[5:].lstrip(b" "), at_us)
        elif line.startswith(b"event:"):
            self._event = line[6:].strip().decode(errors="replace")
        # Comments, ids and retries say nothing about the turn.

    def _data(self, data: bytes, at_us: int) -> None:
        if self._native:
            self._native_data(data, at_us)
        elif data != b"[DONE]":
            self._openai_data(data, at_us)

    def _native_data(self, data: bytes, at_us: int) -> None:
        if self._event == "text":
            # Parsed only until the first one: a long answer has hundreds.
            if self.seen_text or (_object(data) or {}).get("delta"):
                self._text(at_us)
        elif self._event == "report":
            self.report = _object(data)
        elif self._event == "error":
            self.error = _error_code(_object(data))

    def _openai_data(self, data: bytes, at_us: int) -> None:
        chunk = _object(data)
        if chunk is None:
            self.error = "malformed_event"
            return
        if chunk.get("error"):
            self.error = _error_code(chunk)
        self.usage = chunk.get("usage") or self.usage
        self.report = chunk.get("agentao_gov") or self.report
        for choice in chunk.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                self._text(at_us)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _text(self, at_us: int) -> None:
        if self.first_text_us is None:
            self.first_text_us = at_us
        else:
            gap = at_us - self._last_text_us
            self._gaps += 1
            self._gap_sum_us += gap
            self.gap_max_us = max(self.gap_max_us or 0, gap)
        self._last_text_us = at_us

    @property
    def outcome(self) -> str:
        """How the turn ended, once the stream has."""
        if self.report is not None:
            return str(self.report.get("outcome", "internal_error"))
        if self.error is not None:
            return self.error
        # A stream without its last word was cut, whatever came before.
        return "answered" if self.finish_reason is not None and not self._native else "incomplete"


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _error_code(body: dict[str, Any] | None) -> str:
    error = (body or {}).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return str(code or "error")


class TurnClient:
    """Talks to one target. Greenlet-safe: each request takes a connection of the pool."""

    def __init__(self, target: str, *, keys: Mapping[str, str], api: Literal["native", "openai"] = "native") -> None:
        """`target`: its address; `keys`: API keys by tenant; `api`: the interface to use."""
        self._api = api
        self._keys = dict(keys)
        self._target = target
        self._prefix = urlsplit(target).path.rstrip("/").removesuffix("/v1")
        self._http = self._connect()

    def _connect(self) -> HTTPClient:
        return HTTPClient.from_url(
            self._target,
            concurrency=_CONNECTIONS_MAX,
            connection_timeout=_CONNECT_TIMEOUT_S,
            # Turns have their own time limit around everything; a limit per read would cut quiet tools short.
            network_timeout=None,
            block_size=_BLOCK_BYTES,
        )

    def turn(
        self, *, session: str, tenant: str, user: str, profile: str, message: str, timeout_s: float
    ) -> ClientResult:
        """Sends one turn and reads its stream to the end. Never raises but for the greenlet's own death.

        Args:
            session: the session's id.
            tenant: whose key is sent.
            user: whose turn it is.
            profile: what the turn is run under.
            message: what is asked.
            timeout_s: from the send to the last byte.
        """
        path, body = self._request(session, user, profile, message)
        headers = self._headers(tenant, session) | {"Accept": "text/event-stream"}
        response = None
        start = time.perf_counter_ns()
        try:
            with gevent.Timeout(timeout_s):
                response = self._http.request("POST", path, body, headers)
                result = self._read(response, start)
        except gevent.Timeout:
            result = ClientResult(outcome="client_timeout", error=f"no end within {timeout_s:g} s")
        except (HTTPParseError, OSError) as error:
            outcome = UNSENT if getattr(error, "errno", None) in _OWN_SHORTAGES else "connection_error"
            result = ClientResult(outcome=outcome, error=f"{type(error).__name__}: {error}"[:200])
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            # Not what the contract says an answer is; a service may send anything, and the load goes on.
            result = ClientResult(outcome="malformed_answer", error=f"{type(error).__name__}: {error}"[:200])
        finally:
            # An unread connection must not go back to the pool; closing it also tells the service we are gone.
            if response is not None:
                response.release()
        return replace(result, service_us=(time.perf_counter_ns() - start) // 1000)

    def delete(self, session: str, tenant: str, *, timeout_s: float = 5.0) -> bool:
        """Removes a `tenant`'s session at the target, within `timeout_s`; whether it is gone."""
        try:
            with gevent.Timeout(timeout_s):
                path = f"{self._prefix}/v1/sessions/{quote(session, safe='')}"
                response = self._http.request("DELETE", path, headers=self._headers(tenant, session))
                response.read()
        except (gevent.Timeout, HTTPParseError, OSError):
            return False
        return response.status_code in (200, 202, 204, 404)

    def renew(self) -> None:
        """Closes idle connections: what a phase left open must not take the service's descriptors in the next one."""
        self._http.close()
        self._http = self._connect()

    def close(self) -> None:
        """Closes idle connections, for good."""
        self._http.close()

    def _request(self, session: str, user: str, profile: str, message: str) -> tuple[str, bytes]:
        if self._api == "native":
            path = f"{self._prefix}/v1/sessions/{quote(session, safe='')}/turns"
            body: dict[str, Any] = {"message": message, "profile": profile, "user": user}
        else:
            path = f"{self._prefix}/v1/chat/completions"
            body = {
                "model": profile,
                "user": user,
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": message}],
            }
        return path, json.dumps(body).encode()

    def _headers(self, tenant: str, session: str) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "X-Session-Id": session}
        if key := self._keys.get(tenant):
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _read(self, response: Any, start: int) -> ClientResult:
        status = int(response.status_code)
        if status != 200:
            return _refusal(response, status)
        if "event-stream" not in str(response.get("content-type", "")):
            return _report_result(json.loads(response.read()), status)
        reader = StreamReader(self._api)
        while line := response.readline(b"\n"):
            reader.line(line, (time.perf_counter_ns() - start) // 1000)
        if rest := response.read():
            # A last line without its end.
            reader.line(rest, (time.perf_counter_ns() - start) // 1000)
        return replace(
            _report_result(reader.report or {}, status, usage=reader.usage),
            outcome=reader.outcome,
            first_token_us=reader.first_text_us,
            gap_mean_us=reader.gap_mean_us,
            gap_max_us=reader.gap_max_us,
        )


def _refusal(response: Any, status: int) -> ClientResult:
    raw = response.read(_ERROR_BODY_BYTES) if response.content_length is None else response.read()
    try:
        body = json.loads(raw)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    report = body.get("agentao_gov")
    error = body.get("error")
    error = error if isinstance(error, dict) else {}
    fallback = "rate_limited" if status == 429 else f"http_{status}"
    known = isinstance(report, dict) and report.get("outcome")
    code = str(known or error.get("code") or fallback)
    try:
        retry_after_s = float(str(response.get("retry-after")))
    except ValueError:
        retry_after_s = None
    return replace(
        _report_result(report if isinstance(report, dict) else {}, status),
        outcome="rate_limited" if status == 429 and code == "rate_limit_exceeded" else code,
        error=str(error.get("message", ""))[:200],
        retry_after_s=retry_after_s,
    )


def _report_result(report: dict[str, Any], status: int, *, usage: dict[str, Any] | None = None) -> ClientResult:
    timing = report.get("timing_ms") or {}
    used = report.get("usage") or usage or {}
    queued, model = timing.get("queued"), timing.get("model")
    return ClientResult(
        outcome=str(report.get("outcome", "incomplete")),
        http_status=status,
        queue_us=None if queued is None else int(queued * 1000),
        model_us=None if model is None else int(model * 1000),
        prompt_tokens=int(used.get("prompt_tokens") or 0),
        completion_tokens=int(used.get("completion_tokens") or 0),
        llm_calls=int(used.get("llm_calls") or 0),
        tool_calls=len(report.get("tool_calls") or ()),
        error=str(report.get("detail") or "")[:200],
    )
