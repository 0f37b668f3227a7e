"""The simulated provider: routes, capacity, holds, and the control endpoints under `/sim/`."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from agentao_gov.errors import BadRequestError, ConfigError
from agentao_gov.simulator.plan import Plan, Planner, WriteStep, broken_directive
from agentao_gov.simulator.playback import Gate, Playback
from agentao_gov.simulator.protocol import Exchange, HttpProtocol
from agentao_gov.simulator.rate_limits import RateLimits
from agentao_gov.simulator.request import ChatRequest
from agentao_gov.simulator.script import Script, load_script
from agentao_gov.simulator.truth import GroundTruth
from agentao_gov.simulator.wire import Wire, error_body
from agentao_gov.simulator.wire_completions import CompletionsWire
from agentao_gov.simulator.wire_messages import MessagesWire
from agentao_gov.simulator.wire_responses import ResponsesWire

#: What `/sim/wait` can wait for, each "at least".
_AWAITABLE = ("calls", "answered", "refused", "client_gone", "in_flight", "queued", "held")


_WIRES: dict[str, Wire] = {
    "/v1/chat/completions": CompletionsWire(),
    "/v1/responses": ResponsesWire(),
    "/v1/messages": MessagesWire(),
}


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
        wire = _WIRES.get(url.path)
        if wire is not None and exchange.method == "POST":
            self._chat(exchange, wire)
            return
        route = self._routes.get((exchange.method, url.path))
        if route is None:
            exchange.reply(404, error_body(404, f"There is no {exchange.method} {url.path}.", code="not_found"))
            return
        try:
            route(exchange, dict(parse_qsl(url.query)))
        except ConfigError as error:
            exchange.reply(400, error_body(400, error.message, code=error.code))

    def _adopt(self, script: Script) -> None:
        self._script = script
        self._planner = Planner(script)
        limits = script.capacity
        self._gate = Gate(limits.concurrency, limits.queue_limit if limits.overflow == "queue" else 0)
        self._rates = RateLimits(limits, time.monotonic)

    def _chat(self, exchange: Exchange, wire: Wire) -> None:
        try:
            request = wire.read(exchange.body, exchange.headers)
        except BadRequestError as error:
            exchange.reply(400, wire.error(400, error.message, param=error.param))
            return
        try:
            plan = self._planner.plan(wire, request)
        except ConfigError as error:
            plan = broken_directive(wire, error)
        self._serve(exchange, wire, request, plan)

    def _serve(self, exchange: Exchange, wire: Wire, request: ChatRequest, plan: Plan) -> None:
        record = self.truth.begin(request, plan, time.time())
        playback = Playback(exchange, plan, record, self.truth, self._gate)
        playback.on_over = self._over
        playback.on_admitted = self._admitted
        self._playing.add(playback)
        wait_s = self._rates.admit(request.prompt_tokens + plan.completion_tokens) if plan.billed else 0.0
        stands = wire.rate_headers(self._rates.stands())
        plan.extra_headers += stands
        if wait_s > 0:
            self._refuse(playback, wire, "rate_limit", wait_s, stands)
        elif not self._gate.enter(playback):
            self._refuse(playback, wire, "capacity", self._script.capacity.retry_after, stands)
        elif not playback.has_place:
            self._changed()

    def _refuse(
        self, playback: Playback, wire: Wire, fault: str, retry_after_s: float, stands: tuple[tuple[str, str], ...]
    ) -> None:
        """Answers 429, which nobody is billed for."""
        message = "This request would exceed the simulated provider's rate limit."
        if fault == "capacity":
            message = "The simulated provider is at its capacity."
        # A header of whole seconds must not call a client back before its time.
        after = f"{retry_after_s:g}" if fault == "capacity" else str(math.ceil(retry_after_s))
        self.truth.refuse(playback.record, 429)
        playback.plan = Plan(
            status=429,
            extra_headers=(("Retry-After", after), *stands),
            steps=[WriteStep(0.0, wire.error(429, message))],
            billed=False,
            fault=fault,
        )
        playback.play()

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
