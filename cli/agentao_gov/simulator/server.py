"""The simulated provider: routes, capacity, holds, and the control endpoints under `/sim/`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agentao_gov.errors import BadRequestError, ConfigError
from agentao_gov.simulator.openai_bytes import error_body
from agentao_gov.simulator.plan import Plan, Planner, broken_directive
from agentao_gov.simulator.playback import Gate, Playback
from agentao_gov.simulator.protocol import Exchange, HttpProtocol
from agentao_gov.simulator.request import ChatRequest, read_request
from agentao_gov.simulator.script import ProviderCapacity, Script, load_script
from agentao_gov.simulator.truth import GroundTruth

__all__ = ["SimulatorServer"]

#: What `/sim/wait` can wait for, each "at least".
_AWAITABLE = ("calls", "answered", "refused", "client_gone", "in_flight", "queued", "held")


class SimulatorServer:
    """State and routes. Lives on one loop."""

    def __init__(self, script: Script) -> None:
        self._initial = script
        self._waiters: list[_OpenWait] = []
        self._playing: set[Playback] = set()
        self._held: dict[str, list[Playback]] = {}
        #: Names released before a request came to hold: they pass at once.
        self._open: set[str] = set()
        self._routes: dict[tuple[str, str], Callable[[Exchange, dict[str, str]], None]] = {
            ("GET", "/sim/truth"): self._truth_route,
            ("POST", "/sim/reset"): self._reset_route,
            ("POST", "/sim/configure"): self._configure_route,
            ("POST", "/sim/release"): self._release_route,
            ("GET", "/sim/wait"): self._wait_route,
            ("GET", "/sim/health"): lambda exchange, _: exchange.reply(200, b'{"status":"ok"}'),
            ("GET", "/v1/models"): self._models_route,
        }
        self._adopt(script)
        self.truth = GroundTruth(self._changed)

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Starts to accept connections."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: HttpProtocol(self.handle), host, port, backlog=1024)

    def handle(self, exchange: Exchange) -> None:
        """Answers one request, now or over time."""
        url = urlsplit(exchange.target)
        if url.path == "/v1/chat/completions" and exchange.method == "POST":
            self._chat(exchange)
            return
        route = self._routes.get((exchange.method, url.path))
        if route is None:
            exchange.reply(
                404, error_body(f"There is no {exchange.method} {url.path}.", "invalid_request_error", "not_found")
            )
            return
        try:
            route(exchange, dict(parse_qsl(url.query)))
        except ConfigError as error:
            exchange.reply(400, error_body(error.message, "invalid_request_error", error.code))

    def _adopt(self, script: Script) -> None:
        self._script = script
        self._planner = Planner(script)
        limits = script.capacity
        self._gate = Gate(limits.concurrency, limits.queue_limit if limits.overflow == "queue" else 0)

    def _chat(self, exchange: Exchange) -> None:
        try:
            request = read_request(exchange.body, exchange.headers)
        except BadRequestError as error:
            exchange.reply(400, error_body(error.message, error.http_type, None, error.param))
            return
        try:
            plan = self._planner.plan(request)
        except ConfigError as error:
            plan = broken_directive(error)
        self._serve(exchange, request, plan)

    def _serve(self, exchange: Exchange, request: ChatRequest, plan: Plan) -> None:
        record = self.truth.begin(request, plan, time.time())
        playback = Playback(exchange, plan, record, self.truth, self._gate)
        playback.on_over = self._over
        playback.on_admitted = self._admitted
        self._playing.add(playback)
        if not self._gate.enter(playback):
            refusal = _over_capacity(self._script.capacity)
            self.truth.refuse(record, 429)
            playback.plan = refusal
            playback.play()
        elif not playback.has_place:
            self._changed()

    def _admitted(self, playback: Playback) -> None:
        name = playback.plan.hold
        if name is None or name in self._open:
            playback.play()
            return
        self._held.setdefault(name, []).append(playback)
        self._changed()

    def _over(self, playback: Playback) -> None:
        self._playing.discard(playback)
        name = playback.plan.hold
        if name is not None and playback in self._held.get(name, ()):
            self._held[name].remove(playback)

    # -- control ---------------------------------------------------------------------------------------------------

    def _models_route(self, exchange: Exchange, _: dict[str, str]) -> None:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in self._script.models]
        exchange.reply(200, json.dumps({"object": "list", "data": data}).encode())

    def _truth_route(self, exchange: Exchange, query: dict[str, str]) -> None:
        exchange.reply(200, json.dumps(self._snapshot(requests=query.get("requests") == "1")).encode())

    def _reset_route(self, exchange: Exchange, _: dict[str, str]) -> None:
        for playback in list(self._playing):
            playback.abort()
        self._held.clear()
        self._open.clear()
        self._adopt(self._initial)
        self.truth = GroundTruth(self._changed)
        exchange.reply(200, b"{}")

    def _configure_route(self, exchange: Exchange, _: dict[str, str]) -> None:
        self._adopt(load_script(_json(exchange.body)))
        exchange.reply(200, b"{}")

    def _release_route(self, exchange: Exchange, _: dict[str, str]) -> None:
        body = _json(exchange.body)
        name = str(body.get("name", ""))
        if body.get("stay_open"):
            self._open.add(name)
        released = self._held.pop(name, [])
        for playback in released:
            playback.play()
        exchange.reply(200, json.dumps({"released": len(released)}).encode())

    def _wait_route(self, exchange: Exchange, query: dict[str, str]) -> None:
        wanted = {name: int(query[name]) for name in _AWAITABLE if name in query}
        waiter = _OpenWait(exchange, wanted, idle=query.get("idle") == "1")
        self._waiters.append(waiter)
        exchange.on_gone = lambda: self._drop_waiter(waiter)
        timeout_s = float(query.get("timeout", "10"))
        waiter.timer = asyncio.get_running_loop().call_later(timeout_s, self._wake, waiter, 408)
        self._changed()

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _snapshot(self, *, requests: bool) -> dict[str, Any]:
        return self.truth.snapshot(queued=self._gate.queued, held=self._held_count(), requests=requests)

    def _held_count(self) -> int:
        return sum(len(group) for group in self._held.values())

    def _changed(self) -> None:
        for waiter in list(self._waiters):
            if self._met(waiter):
                self._wake(waiter, 200)

    def _met(self, waiter: _OpenWait) -> bool:
        if waiter.idle and self.truth.total.in_flight:
            return False
        extra = {"queued": self._gate.queued, "held": self._held_count()}
        return all(
            (extra[name] if name in extra else getattr(self.truth.total, name)) >= least
            for name, least in waiter.wanted.items()
        )

    def _wake(self, waiter: _OpenWait, status: int) -> None:
        self._drop_waiter(waiter)
        if not waiter.exchange.ended:
            waiter.exchange.reply(status, json.dumps(self._snapshot(requests=False)).encode())

    def _drop_waiter(self, waiter: _OpenWait) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.timer is not None:
            waiter.timer.cancel()


class _OpenWait:
    """One open `/sim/wait`."""

    def __init__(self, exchange: Exchange, wanted: dict[str, int], *, idle: bool) -> None:
        self.exchange = exchange
        self.wanted = wanted
        self.idle = idle
        self.timer: asyncio.TimerHandle | None = None


def _json(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except ValueError as error:
        raise ConfigError(f"The body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError("The body must be a JSON object.")
    return data


def _over_capacity(capacity: ProviderCapacity) -> Plan:
    from agentao_gov.simulator.plan import WriteStep

    body = error_body("The simulated provider is at its capacity.", "rate_limit_error", "rate_limit_exceeded")
    headers = (("Retry-After", f"{capacity.retry_after:g}"),)
    return Plan(status=429, extra_headers=headers, steps=[WriteStep(0.0, body)], billed=False, fault="capacity")
