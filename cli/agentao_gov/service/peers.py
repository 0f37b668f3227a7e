"""Workers ask each other, and make one answer of several: a request lands on any of them.

Its session may be in another one's memory, and metrics and status are the whole service's. Each worker also listens
on a socket in its service's own directory below `STATE/workers/` (0700), with the same application and the same keys. A
request that comes over such a socket is answered from this worker alone, so that questions never go in circles.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
from starlette.requests import Request

from agentao_gov.errors import OverloadedError, QueueFullError
from agentao_gov.pool.archive import SessionArchive
from agentao_gov.service.answers import ServiceStatus, Session, SessionList

#: A worker that does not answer within this time is hung, or too busy to be waited for.
_ASK_S = 2.0
#: Between looks for workers that are still starting.
_LOOK_S = 0.1
#: Samples that are not parts of a whole: of these the largest counts.
_LARGEST = (
    "agentao_gov_session_memory_bytes{",
    "agentao_gov_shutdown_rung",
    "agentao_gov_alert_active",
    "agentao_gov_budget_used_ratio",
    # All workers see the same archive.
    'agentao_gov_sessions{state="hibernated"}',
)


def from_peer(request: Request) -> bool:
    """Whether another worker asks. Only a connection over a Unix socket has no client address."""
    return request.scope.get("client") is None


def _path(directory: Path, worker: int) -> Path:
    return directory / f"{worker}.sock"


def listen_for_peers(directory: Path, worker: int) -> socket.socket:
    """This worker's own socket; replaces one that a worker before it left behind."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _path(directory, worker)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Relative to an open directory, because a Unix socket's path ends at 107 bytes and a state directory's need not.
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    listener.listen(128)
    listener.setblocking(False)
    return listener


@dataclass(frozen=True, slots=True)
class PeerAnswer:
    """What another worker said."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class PeerAnswers:
    """What the other workers said."""

    #: Of those that had something to say: answers with status 200.
    found: tuple[PeerAnswer, ...] = ()
    #: Whether one of them lives and gave no answer, so that what it holds is not known.
    silent: bool = False

    @property
    def json(self) -> list[Any]:
        """The bodies, parsed."""
        return [answer.json for answer in self.found]

    def require_all(self) -> None:
        """Raises OverloadedError where one was silent: what was not found may be there."""
        if self.silent:
            raise OverloadedError(
                f"A worker of the service did not answer within {_ASK_S:g} s.",
                outside="The service did not find out in time; ask again.",
                retry_after_s=1.0,
            )


@dataclass(frozen=True, slots=True)
class Peers:
    """The other workers of this service. Used on the event loop alone; asking takes no thread."""

    directory: Path
    worker: int
    workers: int

    @property
    def _others(self) -> list[int]:
        return [worker for worker in range(self.workers) if worker != self.worker]

    async def ask(self, request: Request) -> PeerAnswers:
        """Asks every other worker what `request` asks this one, with the same key."""
        if from_peer(request) or self.workers == 1:
            return PeerAnswers()
        query = f"?{request.url.query}" if request.url.query else ""
        headers = {"Authorization": request.headers.get("authorization", "")}
        path = request.url.path + query
        answers = await asyncio.gather(*(self._ask(n, request.method, path, headers) for n in self._others))
        found = tuple(answer for answer in answers if answer is not None and answer.status == 200)
        unwell = (OverloadedError.ending.http_status, QueueFullError.ending.http_status)
        return PeerAnswers(found, any(answer is not None and answer.status in unwell for answer in answers))

    async def await_all(self) -> None:
        """Returns once every other worker has answered."""
        missing = self._others
        while missing:
            answers = await asyncio.gather(*(self._ask(worker, "GET", "/healthz", {}) for worker in missing))
            missing = [worker for worker, answer in zip(missing, answers, strict=True) if not _is_well(answer)]
            if missing:
                await asyncio.sleep(_LOOK_S)

    async def _ask(self, worker: int, method: str, path: str, headers: dict[str, str]) -> PeerAnswer | None:
        """One worker's answer; None where there is no worker, and 503 where it gives none in time."""
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            socket_path = f"/proc/self/fd/{folder}/{_path(self.directory, worker).name}"
            transport = httpx.AsyncHTTPTransport(uds=socket_path, verify=False)
            async with asyncio.timeout(_ASK_S), transport:
                request = httpx.Request(method, f"http://worker{path}", headers=headers)
                response = await transport.handle_async_request(request)
                return PeerAnswer(response.status_code, await response.aread())
        except httpx.ConnectError:
            # It is being started, and holds nothing yet.
            return None
        except (TimeoutError, httpx.TransportError):
            return PeerAnswer(OverloadedError.ending.http_status, b"")
        finally:
            os.close(folder)


def _is_well(answer: PeerAnswer | None) -> bool:
    return answer is not None and answer.status == 200


NO_PEERS = Peers(Path(), 0, 1)


def merge_metrics(texts: Sequence[bytes]) -> bytes:
    """Prometheus texts of several workers as one: counts are added, quantiles and states are the largest."""
    if len(texts) == 1:
        return texts[0]
    values: dict[str, float] = {}
    blocks: dict[str, list[str]] = {}
    for text in texts:
        block = ""
        for line in text.decode().splitlines():
            if line.startswith("# "):
                block = line.split(" ")[2]
                lines = blocks.setdefault(block, [])
                if line not in lines:
                    lines.append(line)
                continue
            name, _, value = line.rpartition(" ")
            if name not in values:
                blocks[block].append(name)
                values[name] = float(value)
            elif name.startswith(_LARGEST):
                values[name] = max(values[name], float(value))
            elif not name.partition("{")[0].endswith("_created"):
                values[name] += float(value)
    out = [line if line.startswith("# ") else f"{line} {values[line]!r}" for block in blocks.values() for line in block]
    return ("\n".join(out) + "\n").encode()


def merge_sessions(pages: Sequence[SessionList], limit: int) -> SessionList:
    """The page of `limit` sessions that all workers' pages make; one in a worker's memory is told by that worker."""
    found: dict[str, Session] = {}
    for page in pages:
        for row in page["data"]:
            known = found.get(row["id"])
            if known is None or known["state"] == "hibernated":
                found[row["id"]] = row
    # Each page has the first ones that its worker knows of, so that the first ones of all are among them.
    rows = sorted(found.values(), key=lambda row: SessionArchive.place(row["id"]))
    return {
        "object": "list",
        "data": rows[:limit],
        "has_more": len(rows) > limit or any(page["has_more"] for page in pages),
        "last_id": rows[:limit][-1]["id"] if rows else None,
        # All workers see the same disk.
        "total": max(len(rows), *(page["total"] for page in pages)),
    }


def merge_status(own: ServiceStatus, others: Sequence[ServiceStatus]) -> ServiceStatus:
    """The status of the whole service as one worker tells it."""
    if not others:
        return own
    every: list[Any] = [own, *others]
    merged: Any = dict(own)
    merged["instance"] = {**own["instance"], "pids": [status["instance"]["pid"] for status in every]}
    merged["ready"] = all(status["ready"] for status in every)
    merged["not_ready_because"] = sorted({why for status in every for why in status["not_ready_because"]})
    merged["shutdown_rung"] = max((status["shutdown_rung"] for status in every), key=lambda rung: rung["number"])
    merged["busy"] = sum(status["busy"] for status in every)
    for name in ("queue", "tenants", "processes"):
        merged[name] = _add([status[name] for status in every])
    merged["processes"]["per_session"] = _largest([status["processes"]["per_session"] for status in every])
    merged["pool"] = _add([{k: v for k, v in status["pool"].items() if k != "wait_ms"} for status in every])
    # Of what all workers see on the same disk there is one.
    if (hibernated := own["pool"]["sessions"].get("hibernated")) is not None:
        merged["pool"]["sessions"]["hibernated"] = hibernated
    waits = [status["pool"]["wait_ms"] for status in every]
    merged["pool"]["wait_ms"] = None if None in waits else _largest(waits)
    merged["memory"] = _add([{k: v for k, v in status["memory"].items() if k != "session_bytes"} for status in every])
    merged["memory"]["session_bytes"] = _largest([status["memory"]["session_bytes"] for status in every])
    merged["memory"]["session_bytes"]["sum"] = sum(status["memory"]["session_bytes"]["sum"] for status in every)
    merged["turns"] = {
        "ended": _add([status["turns"]["ended"] for status in every]),
        "in_flight": [turn for status in every for turn in status["turns"]["in_flight"]],
    }
    merged["budgets"] = _fullest(every)
    merged["alerts"] = _standing(every)
    if own["capacity"] is not None:
        plans = [{k: v for k, v in status["capacity"].items() if k != "alert_at"} for status in every]
        merged["capacity"] = {**_add(plans), "alert_at": own["capacity"]["alert_at"]}
    return cast("ServiceStatus", merged)


def _add(parts: Sequence[Any]) -> Any:
    """Numbers added, tables merged key by key, everything else the first one's."""
    first = parts[0]
    if isinstance(first, dict):
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: _add([part[key] for part in parts if key in part]) for key in keys}
    if isinstance(first, bool) or not isinstance(first, int | float):
        return first
    return sum(part for part in parts if part is not None)


def _largest(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: max(part[key] for part in parts) for key in parts[0]}


def _fullest(every: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Budgets are shared; of two workers' lines the later one has the larger figure."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for status in every:
        for line in status["budgets"]:
            known = lines.get((line["scope"], line["key"]))
            if known is None or line["used"] > known["used"]:
                lines[line["scope"], line["key"]] = line
    return list(lines.values())


def _standing(every: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each alert as the worker tells it where it stands."""
    alerts: dict[str, dict[str, Any]] = {}
    for status in every:
        for alert in status["alerts"]:
            if alert["alert"] not in alerts or (alert["active"] and not alerts[alert["alert"]]["active"]):
                alerts[alert["alert"]] = alert
    return list(alerts.values())
