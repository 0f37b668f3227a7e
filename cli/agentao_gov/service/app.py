"""Builds the application: the routes, the answers to errors, the live page, and the limits that stand before them."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from agentao_gov.errors import (
    BadRequestError,
    GovError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
)
from agentao_gov.monitor.logs import RefusalLog
from agentao_gov.service import request_limits
from agentao_gov.service.endpoints import Endpoints
from agentao_gov.service.errors import failure_of_error
from agentao_gov.service.openapi import openapi_document
from agentao_gov.service.request_limits import FairShares, RequestLimits
from agentao_gov.service.routes import OPERATIONS, Operation

if TYPE_CHECKING:
    from agentao_gov.service.gateway import Gateway


@cache
def page_html() -> str:
    """The live page at `/`: one self-contained file."""
    return files("agentao_gov.service").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """The CSP sources of every inline `tag`: nothing but these very bytes may run."""
    blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page_html(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


#: A policy that lets the page load nothing but its own figures.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


#: Of a path that is told back.
_PATH_CHARS_MAX = 200


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
    app = Starlette(
        routes=routes,
        exception_handlers={GovError: refuse, HTTPException: _http_error, Exception: _bug},  # type: ignore[dict-item]
    )
    app.router.redirect_slashes = False
    limits = gateway.deployment.pool
    # Twice the turns: one tenant alone may have half of all, and must be able to fill the pool and its queue.
    requests_max = 2 * (limits.max_busy + limits.queue_limit) + request_limits.SPARE_REQUESTS
    shares = FairShares(requests_max, request_limits.GUARANTEED_REQUESTS)
    return RequestLimits(app, gateway.tenants, shares, turned_away)


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
