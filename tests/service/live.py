"""The real HTTP service on a real port, in this process, over hosts that do what a message says.

For faults that no simulated model can cause: agents that cannot be built, closes that hang, text without end.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from agentao_gov.budget import MemoryStore, TokenLedger
from agentao_gov.config import Deployment, ResolvedDeployment
from agentao_gov.pool import AgentPool, SessionArchive
from agentao_gov.service.build import build_service
from agentao_gov.service.openapi import openapi_document
from agentao_gov.service.request_limits import HEADER_BYTES_MAX
from agentao_gov.service.server import BoundedHeadProtocol, bind
from agentao_gov.service.tenants import OfferedProfile
from tests.e2e.service import Client
from tests.pool.bench import a_model, a_profile
from tests.pool.scripted import HANG_S, ScriptedHosts

__all__ = ["Live"]


class Impatient(BoundedHeadProtocol):
    """With limits that a test can wait for."""

    head_s_max = 0.5
    write_s_max = 0.5


class Live(Client):
    """One service; `close` ends it and says what was left."""

    def __init__(self, root: Path, hosts: ScriptedHosts, *, tenants: Any = None, **pool: Any) -> None:
        super().__init__()
        sections = {"pool": {"queue_timeout": "20s", **pool}, "tenants": tenants or {}}
        deployment = ResolvedDeployment(
            deployment=Deployment.model_validate(sections), sources={}, findings=(), path=None, state_dir=root
        )
        #: By a path's pattern and a method: the statuses that the OpenAPI document names.
        self._documented = {
            re.compile(re.sub(r"{\w+}", "[^/]+", path)): {
                method: {int(status) for status in operation["responses"]} for method, operation in methods.items()
            }
            for path, methods in openapi_document()["paths"].items()
        }
        #: Method, path and status of answers that it does not name; only the server's thread writes.
        self.undocumented: set[tuple[str, str, int]] = set()
        self.ledger = TokenLedger(MemoryStore())
        self.archive = SessionArchive(root / "sessions")
        self.pool = AgentPool(deployment, {"fresh": hosts, "in-process": hosts}, self.archive)
        quick = a_profile("quick", turn_timeout="300ms", tool_timeout="100ms")
        offered = {name: OfferedProfile(a_profile(name), a_model()) for name in ("qa", "other")}
        offered["quick"] = OfferedProfile(quick, a_model())
        self.service = build_service(deployment, self.pool, self.ledger, offered)
        listener = bind("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._watched, interface="asgi3", http=Impatient, h11_max_incomplete_event_size=HEADER_BYTES_MAX, ws="none",
            lifespan="off", log_config=None, timeout_graceful_shutdown=1,
            timeout_keep_alive=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]}, daemon=True)
        self.thread.start()

    async def _watched(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The service's application; notes what it answers that its OpenAPI document does not know."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                for pattern, methods in self._documented.items():
                    statuses = methods.get(scope["method"].lower())
                    if statuses and pattern.fullmatch(scope["path"]) and message["status"] not in statuses:
                        self.undocumented.add((scope["method"], scope["path"], message["status"]))
            await send(message)

        await self.service.app(scope, receive, noted)

    def counts(self) -> tuple[int, int, int]:
        """Busy, waiting, and requests inside the door."""
        stats = self.pool.stats()
        return stats.busy, stats.queue_length, len(self.service.gateway.in_flight)

    def close(self) -> None:
        self.pool.close()
        self.server.should_exit = True
        self.thread.join(HANG_S)
        assert not self.thread.is_alive()
        self.service.close()
        self.ledger.close()
        assert self.undocumented == set()
