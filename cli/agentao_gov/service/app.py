"""Builds the Starlette application: routes, error answers, the page, and the door that bounds requests in flight."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agentao_gov.errors import (
    BadRequestError,
    GovError,
    HeadTooLargeError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    QueueFullError,
)
from agentao_gov.monitor.logs import RefusalLog
from agentao_gov.service.endpoints import Endpoints
from agentao_gov.service.errors import failure_of_error
from agentao_gov.service.openapi import openapi_document
from agentao_gov.service.routes import OPERATIONS, Operation

if TYPE_CHECKING:
    from agentao_gov.service.gateway import Gateway

__all__ = ["PAGE_HEADERS", "create_app", "page_html"]


# The live page at `/`: one self-contained file, sent with a policy that lets it load nothing but its own figures.


@cache
def page_html() -> str:
    """The file as it is sent."""
    return files("agentao_gov.service").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """The CSP sources of every inline `tag`: nothing but these very bytes may run."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page_html(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


#: Path and header bytes of one request. A key, ids and a trace context need 2 KiB.
HEADER_BYTES_MAX = 32 * 1024
#: Of a path that is told back.
_PATH_CHARS_MAX = 200
#: Requests beside the turns that run and wait: bodies being read, lists, scrapes.
SPARE_REQUESTS = 512


def create_app(gateway: Gateway) -> ASGIApp:
    """The whole HTTP surface over one gateway."""
    document = openapi_document()
    page = page_html()
    refusals = RefusalLog()

    def turned_away(error: GovError) -> Response:
        # Refusals of turns are counted and logged by the pool's events; these never became turns.
        gateway.metrics.rejected(error.code)
        if str(error) != error.public_message:
            refusals.tell(error)
        return failure_of_error(error).response()

    async def openapi(request: Request) -> Response:
        del request
        return JSONResponse(document)

    async def live_page(request: Request) -> Response:
        del request
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def refuse(request: Request, error: GovError) -> Response:
        del request
        return turned_away(error)

    routes = [
        *_api_routes(Endpoints(gateway)),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/", live_page, methods=["GET"]),
    ]
    limits = gateway.deployment.pool
    requests_max = limits.max_busy + limits.queue_limit + SPARE_REQUESTS
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Door, requests_max=requests_max, turned_away=turned_away)],
        exception_handlers={GovError: refuse, HTTPException: _http_error, Exception: _bug},  # type: ignore[dict-item]
    )
    # Starlette keeps the handler of `Exception` outside all middleware, and raises again after answering.
    app.router.redirect_slashes = False
    return app


def _api_routes(endpoints: Endpoints) -> list[Route]:
    """One route a path, so that `Allow` names every method of it."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation

    def route(path: str, methods: Mapping[str, Operation]) -> Route:
        async def dispatch(request: Request) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            return await methods[method].handler(endpoints, request)

        return Route(path, dispatch, methods=[*methods])

    return [route(path, methods) for path, methods in paths.items()]


async def _http_error(request: Request, error: HTTPException) -> Response:
    """What Starlette itself refuses: a path or a method that there is not."""
    told: GovError = BadRequestError(str(error.detail))
    if error.status_code == 404:
        told = NotFoundError(f"Nothing lives at {request.url.path[:_PATH_CHARS_MAX]}.")
    elif error.status_code == 405:
        told = MethodNotAllowedError(f"This path does not take {request.method[:_PATH_CHARS_MAX]}.")
    response = failure_of_error(told).response()
    response.headers.update(error.headers or {})
    return response


async def _bug(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    logging.getLogger(__name__).error("request failed: %s", request.url.path, exc_info=error)
    return failure_of_error(
        InternalError(f"The request failed inside the service ({type(error).__name__}).")
    ).response()


def _head_bytes(scope: Scope) -> int:
    return len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"])


class _Door:
    """Lets so many requests in at once. Probes and metrics always pass: they are how one sees that it is full."""

    def __init__(self, app: ASGIApp, *, requests_max: int, turned_away: Callable[[GovError], Response]) -> None:
        self._app = app
        self._requests_max = requests_max
        self._turned_away = turned_away
        #: Requests inside now; changed on the event loop alone.
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # h11 has this limit for a head that comes in pieces; one that comes at once it lets pass.
        if scope["type"] == "http" and _head_bytes(scope) > HEADER_BYTES_MAX:
            too_large = HeadTooLargeError(f"The request's head is larger than the limit of {HEADER_BYTES_MAX:,} bytes.")
            await failure_of_error(too_large).response()(scope, receive, send)
            return
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        if self._inside >= self._requests_max:
            error = QueueFullError(
                f"{self._inside} requests are open already.",
                hint="That is `[pool] max_busy`, `queue_limit` and some to spare.",
                outside="The service takes no more requests at the moment.",
                retry_after_s=1.0,
            )
            await self._turned_away(error)(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            return
        finally:
            self._inside -= 1
