"""The endpoints: each reads one request, asks the gateway, and answers. No decisions are made here."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agentao_gov.errors import BadRequestError, TooLargeError
from agentao_gov.governor.report import TurnReport
from agentao_gov.governor.types import Conversation, SessionKey
from agentao_gov.pool.types import SessionState
from agentao_gov.service.answers import (
    Cancelled,
    Deleted,
    Health,
    Model,
    ModelList,
    Readiness,
    Session,
    SessionList,
)
from agentao_gov.service.bodies import ChatBody, TurnBody, page_of, parse_body, require_session_id
from agentao_gov.service.peers import from_peer, merge_metrics, merge_sessions, merge_status
from agentao_gov.service.sse import ChatWriter, NativeWriter, completion
from agentao_gov.service.status import history_json, session_json, status_json
from agentao_gov.service.tenants import ADMIN, OfferedProfile
from agentao_gov.service.turns import TurnResponse

if TYPE_CHECKING:
    from agentao_gov.pool.types import SessionInfo
    from agentao_gov.service.gateway import Gateway

_B = TypeVar("_B", ChatBody, TurnBody)

#: A body that is not there after this long is not coming: a trickle must not hold a connection for ever.
BODY_S_MAX = 30.0
#: Bodies of one tenant that are read at once: of 4 MiB each they are what one tenant can fill the memory with. Further
#: ones wait, which shows in nothing but their own time.
BODIES_MAX = 16
#: What is looked at within a millisecond. Larger bodies of one tenant are looked at one by one, no more of them than so
#: many bytes a second: 4 MiB of the worst take 30 ms, in which nobody else is served.
QUICK_BODY_BYTES = 64 * 1024
BODY_BYTES_PER_S = 4 * 1024**2


class Endpoints:
    """The handlers, bound to one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._executors = gateway.executors
        #: By tenant: a place for each body that is being read.
        self._body_slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(BODIES_MAX))
        #: By tenant: who may look at a large body next.
        self._large_bodies: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(1))
        #: The last scrape of the whole service (False) and of this worker alone (True), which may still run.
        self._scrapes: dict[bool, asyncio.Task[bytes]] = {}

    def _key(self, request: Request) -> SessionKey:
        return SessionKey(_tenant(request), require_session_id(request.path_params["session_id"]))

    def _session_json(self, info: SessionInfo) -> Session:
        monitor = self._gateway.monitor
        return session_json(info, monitor.session_bytes(info.key), monitor.session_processes(info.key))

    async def _body(self, request: Request, kind: type[_B]) -> _B:
        """Reads and validates the body: 30 ms at the most, whatever is sent, and of one tenant now and then."""
        tenant, server = _tenant(request), self._gateway.deployment.server
        async with self._body_slots[tenant]:
            raw = await self._raw_body(request)
            if len(raw) > QUICK_BODY_BYTES:
                place = self._large_bodies[tenant]
                await place.acquire()
                asyncio.get_running_loop().call_later(len(raw) / BODY_BYTES_PER_S, place.release)
            return parse_body(kind, raw, message_bytes_max=server.max_message_bytes, messages_max=server.max_messages)

    async def _raw_body(self, request: Request) -> bytes:
        limit = self._gateway.deployment.server.max_body_bytes
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            raise TooLargeError(f"The body has {int(announced):,} bytes; the limit is {limit:,}.")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_S_MAX):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > limit:
                        raise TooLargeError(f"The body is larger than the limit of {limit:,} bytes.")
                    parts.append(chunk)
        except TimeoutError:
            raise BadRequestError(f"The body was not complete after {BODY_S_MAX:.0f} s.") from None
        return b"".join(parts)

    async def create_chat_completion(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        tenant = _tenant(request)
        header = request.headers.get("x-session-id")
        session = None if header is None else require_session_id(header)
        body = await self._body(request, ChatBody)
        offer = self._gateway.profiles.resolve(tenant, body.model)
        conversation = Conversation(messages=body.history()) if session is None and body.history() else None
        order = self._gateway.order(tenant, session, offer, body.question, body.user, conversation)
        created = int(time.time())

        def answer(report: TurnReport) -> Response:
            return JSONResponse(completion(report, created=created))

        writer = None
        if body.stream:
            writer = ChatWriter(order.turn_id, offer.name, created=created, usage_chunk=body.usage_chunk)
        return TurnResponse(self._gateway, order, answer=answer, writer=writer)

    async def run_turn(self, request: Request) -> Response:
        """`POST /v1/sessions/{id}/turns`."""
        key = self._key(request)
        body = await self._body(request, TurnBody)
        name = body.profile
        if name is None:
            name = self._gateway.pool.profile_of(key)
        if name is None:
            known = await self._executors.reads.run(key.tenant, self._gateway.pool.session, key)
            name = known.profile if known is not None else None
        offer = self._gateway.profiles.resolve(key.tenant, name)
        order = self._gateway.order(key.tenant, key.session, offer, body.message, body.user)
        streams = "text/event-stream" in request.headers.get("accept", "")
        return TurnResponse(self._gateway, order, answer=_report_json, writer=NativeWriter() if streams else None)

    async def cancel_turn(self, request: Request) -> Response:
        """`POST /v1/sessions/{id}/cancel`."""
        key = self._key(request)
        cancelled = await self._executors.cancels.run(key.tenant, self._gateway.pool.cancel, key, "cancelled")
        if not cancelled:
            answers = await self._gateway.peers.ask(request)
            cancelled = any(answer["cancelled"] for answer in answers.json)
            if not cancelled:
                answers.require_all()
            if not answers.found:
                await self._executors.reads.run(key.tenant, self._gateway.session, key)
        answer: Cancelled = {"id": key.session, "object": "session", "cancelled": cancelled}
        return JSONResponse(answer)

    async def list_sessions(self, request: Request) -> Response:
        """`GET /v1/sessions`: the tenant's own, hibernated ones too, a page of them."""
        tenant, (limit, after) = _tenant(request), page_of(request.query_params)
        own = await self._executors.reads.run(tenant, self._page, tenant, limit, after)
        answers = await self._gateway.peers.ask(request)
        return JSONResponse(merge_sessions([own, *answers.json], limit))

    def _page(self, tenant: str, limit: int, after: str | None) -> SessionList:
        found = self._gateway.pool.page(tenant, limit=limit, after=after)
        rows = [self._session_json(info) for info in found.sessions]
        return {
            "object": "list",
            "data": rows,
            "has_more": found.has_more,
            "last_id": rows[-1]["id"] if rows else None,
            "total": found.total,
        }

    async def get_session(self, request: Request) -> Response:
        """`GET /v1/sessions/{id}`."""
        key = self._key(request)
        info = await self._executors.reads.run(key.tenant, self._gateway.pool.session, key)
        if info is None or info.state is SessionState.HIBERNATED:
            answers = await self._gateway.peers.ask(request)
            for told in answers.json:
                if told["state"] != "hibernated":
                    return JSONResponse(told)
            if info is None:
                answers.require_all()
        if info is None:
            info = await self._executors.reads.run(key.tenant, self._gateway.session, key)
        return JSONResponse(self._session_json(info))

    async def delete_session(self, request: Request) -> Response:
        """`DELETE /v1/sessions/{id}`: memory, archive and working directory."""
        key = self._key(request)
        answers = await self._gateway.peers.ask(request)
        deleted = await self._executors.deletes.run(key.tenant, self._gateway.pool.delete, key)
        deleted = deleted or any(answer["deleted"] for answer in answers.json)
        answers.require_all()
        if not deleted:
            await self._executors.reads.run(key.tenant, self._gateway.session, key)
        answer: Deleted = {"id": key.session, "object": "session.deleted", "deleted": deleted}
        return JSONResponse(answer)

    async def list_models(self, request: Request) -> Response:
        """`GET /v1/models`: the profiles this tenant may use."""
        tenant = _tenant(request)
        data = [self._model_json(offer) for offer in self._gateway.profiles.of_tenant(tenant)]
        models: ModelList = {"object": "list", "data": data}
        return JSONResponse(models)

    async def get_model(self, request: Request) -> Response:
        """`GET /v1/models/{id}`."""
        tenant = _tenant(request)
        offer = self._gateway.profiles.resolve(tenant, request.path_params["model_id"])
        return JSONResponse(self._model_json(offer))

    def _model_json(self, offer: OfferedProfile) -> Model:
        return {
            "id": offer.name,
            "object": "model",
            "created": int(self._gateway.started_at),
            "owned_by": "agentao-gov",
            "description": offer.resolved.profile.description,
        }

    async def get_status(self, request: Request) -> Response:
        """`GET /v1/status`."""
        tenant = _tenant(request)
        document = await self._executors.observing.run(tenant, status_json, self._gateway, tenant)
        document = merge_status(document, (await self._gateway.peers.ask(request)).json)
        if "history" in request.query_params and (tenant == ADMIN or self._gateway.tenants.open):
            document["history"] = history_json(self._gateway)
        return JSONResponse(document, headers={"Cache-Control": "no-store"})

    async def get_health(self, request: Request) -> Response:
        """`GET /healthz`: the loop answers, so the process lives."""
        del request
        health: Health = {"alive": True}
        return JSONResponse(health)

    async def get_health_alias(self, request: Request) -> Response:
        """`GET /health`: what load balancers and benchmarks ask."""
        return await self.get_health(request)

    async def get_readiness(self, request: Request) -> Response:
        """`GET /readyz`: 503 while the instance should get no traffic, with the reasons."""
        del request
        reasons = self._gateway.not_ready_because()
        rung = self._gateway.pool.stats().rung
        readiness: Readiness = {"ready": not reasons, "rung": rung, "not_ready_because": reasons}
        return JSONResponse(
            readiness,
            status_code=503 if reasons else 200,
            headers={"Retry-After": "5"} if reasons else None,
        )

    async def get_metrics(self, request: Request) -> Response:
        """`GET /metrics`: Prometheus text."""
        if self._gateway.deployment.server.metrics == "admin":
            self._gateway.tenants.require_admin(request.headers.get("authorization"))
        # Whoever asks meanwhile gets the same text: scrapes need no key, and a flood of them must cost one.
        alone = from_peer(request)
        scrape = self._scrapes.get(alone)
        if scrape is None or scrape.done():
            scrape = self._scrapes[alone] = asyncio.ensure_future(self._scrape(request))
        return Response(await asyncio.shield(scrape), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _scrape(self, request: Request) -> bytes:
        text = await self._executors.observing.run("", self._gateway.metrics.render)
        answers = await self._gateway.peers.ask(request)
        return merge_metrics([text, *(answer.body for answer in answers.found)])


def _tenant(request: Request) -> str:
    """Who asks: `RequestLimits` has found out."""
    tenant: str = request.state.tenant
    return tenant


def _report_json(report: TurnReport) -> Response:
    return Response(report.to_json(), media_type="application/json")
