"""Stands before the application: names the tenant of a request from its head, and shares out the open requests.

Whoever has no key holds nothing: the head is judged before a byte of the body is read. One tenant's slow requests
count against that tenant, whatever their number (`tests/service/test_app_neighbours.py`).
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentao_gov.errors import GovError, HeadTooLargeError, QueueFullError
from agentao_gov.service.tenants import ADMIN, TenantDirectory, require_local_page

#: Path and header bytes of one request. A key, ids and a trace context need 2 KiB.
HEADER_BYTES_MAX = 32 * 1024
#: Requests beside the turns that run and wait: bodies being read, lists, scrapes.
SPARE_REQUESTS = 512
#: Open requests that every tenant may have, however many the others have.
GUARANTEED_REQUESTS = 16
#: Paths below /v1/ that answer the operator, too.
_FOR_ADMIN = {"/v1/status"}
#: A request id that a caller may choose: it stands in headers and log lines.
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def request_id(given: str | None) -> str:
    """The caller's own id of a request where `given` is fit to be one, else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class FairShares:
    """Who may have one more of what many share: open requests, connections. No I/O; one thread calls it.

    Each may have as many as are still free, beside the few that are its own in any case: one alone may have half of
    all, two a third each, and however many ask there is always room for the next one (the dynamic thresholds of
    Choudhury and Hahne, 1998). No count of those who share or weights are needed.
    """

    def __init__(self, whole: int, guaranteed: int) -> None:
        """`whole`: how many there are for all together, beside the `guaranteed` ones of each."""
        self._whole = whole
        self._guaranteed = guaranteed
        #: What each holds.
        self._held: Counter[str] = Counter()
        self._held_by_all = 0

    def enter(self, who: str) -> bool:
        """Counts one more of `who`, if it may have it."""
        if self._held[who] >= max(self._whole - self._held_by_all, self._guaranteed):
            return False
        self._held[who] += 1
        self._held_by_all += 1
        return True

    def leave(self, who: str) -> None:
        """Counts one that has ended."""
        self._held[who] -= 1
        self._held_by_all -= 1
        if not self._held[who]:
            del self._held[who]

    def of(self, who: str) -> int:
        """What it holds."""
        return self._held[who]


class RequestLimits:
    """The outermost application. Probes and metrics always pass: they are how one sees that it is full."""

    def __init__(
        self, app: ASGIApp, directory: TenantDirectory, shares: FairShares,
        turned_away: Callable[[GovError], Response],
    ) -> None:  # fmt: skip
        """`app`: finds the tenant in `request.state.tenant`. `turned_away`: counts, logs and words a refusal."""
        self._app = app
        self._directory = directory
        self._shares = shares
        self._turned_away = turned_away

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own_id = request_id(headers.get("x-request-id"))

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = own_id
            await send(message)

        try:
            await self._admit(scope, headers, receive, with_id)
        except GovError as error:
            await self._turned_away(error)(scope, receive, with_id)
        except ClientDisconnect:
            return

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        # h11 has this limit for a head that comes in pieces; one that comes at once it lets pass.
        if _head_bytes(scope) > HEADER_BYTES_MAX:
            raise HeadTooLargeError(f"The request's head is larger than the limit of {HEADER_BYTES_MAX:,} bytes.")
        if not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        # A connection over a Unix socket has no client address: another worker asks for its caller.
        if self._directory.open and scope.get("client") is not None:
            require_local_page(headers.get("host"), headers.get("origin"))
        authorization = headers.get("authorization")
        if scope["path"] in _FOR_ADMIN and self._directory.is_admin(authorization):
            tenant = ADMIN
        else:
            tenant = self._directory.tenant_of(authorization)
        scope.setdefault("state", {})["tenant"] = tenant
        if not self._shares.enter(tenant):
            raise QueueFullError(
                f"{self._shares.of(tenant)} requests of tenant {tenant!r} are open already.",
                hint="That is its share of twice `[pool] max_busy` and `queue_limit` and some to spare.",
                outside="The service takes no more requests of this tenant at the moment.",
                retry_after_s=1.0,
            )
        try:
            await self._app(scope, receive, send)
        finally:
            self._shares.leave(tenant)


def _head_bytes(scope: Scope) -> int:
    return len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in scope["headers"])
