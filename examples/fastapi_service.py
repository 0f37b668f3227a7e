"""Your own agent service: FastAPI on top, agentao-gov's pool, ledger and governor below, in one screen.

    agentao-gov init                                    # agentao-gov.toml and profiles/, with every limit in them
    OPENAI_API_KEY=... uvicorn fastapi_service:app      # needs `pip install fastapi`
    curl -H 'X-Tenant: acme' localhost:8000/ask/s1 -d '{"message": "hello"}' -H 'content-type: application/json'

The pool is what `agentao-gov serve` runs on: one turn at a time per session, caps per tenant and user, a fair queue,
eviction to disk, budgets before each call, and one report per turn.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from agentao_gov import (
    GovError,
    Runtime,
    SessionKey,
    TurnOrder,
    build_runtime,
    fit_to_model,
    load_deployment,
    load_profile,
    resolve_model,
)


class Question(BaseModel):
    """What a client sends."""

    message: str
    user: str = "anonymous"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the pool with the service and walks the shutdown ladder with it."""
    deployment = load_deployment()
    app.state.profile = load_profile("qa", deployment=deployment)
    app.state.model = resolve_model(profile=app.state.profile, deployment=deployment)
    app.state.profile = fit_to_model(app.state.profile, app.state.model)
    runtime: Runtime = build_runtime(deployment)
    app.state.pool = runtime.pool
    yield
    # Drains, cancels, closes: off the event loop, because it takes as long as the ladder allows.
    await asyncio.to_thread(runtime.close)


app = FastAPI(title="My agents", lifespan=lifespan)


@app.exception_handler(GovError)
async def refused(_: Request, error: GovError) -> JSONResponse:
    """Every refusal knows its status, its code and when trying again makes sense."""
    headers = {"Retry-After": str(int(error.retry_after_s) + 1)} if error.retry_after_s is not None else None
    return JSONResponse({"code": error.code, "message": error.public_message}, error.http_status, headers)


@app.post("/ask/{session}")
async def ask(session: str, question: Question, x_tenant: Annotated[str, Header()], request: Request) -> JSONResponse:
    """One turn of a session. Your own authentication decides who `x_tenant` may be."""
    state = request.app.state
    order = TurnOrder(
        key=SessionKey(x_tenant, session), user=question.user, profile=state.profile, model=state.model,
        message=question.message, turn_id=uuid.uuid4().hex, mode="in-process",
    )  # fmt: skip
    report = await asyncio.wrap_future(state.pool.submit(order))
    status = 200 if report.has_answer else report.outcome.http_status
    return JSONResponse({"answer": report.answer, "report": report.model_dump(mode="json", by_alias=True)}, status)
