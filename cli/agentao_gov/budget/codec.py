"""A waiting call as text, so that any process can serve it."""

from __future__ import annotations

import json

from agentao_gov.budget.types import ReserveRequest, Scope, ScopeLimit

__all__ = ["decode_request", "encode_request"]


def encode_request(request: ReserveRequest) -> str:
    """A waiting call as text, for any process to serve."""
    scopes = [[s.scope.kind, s.scope.key, s.limit, s.timezone] for s in request.scopes]
    return json.dumps(
        [
            request.id,
            scopes,
            request.prompt_tokens,
            request.output_tokens_min,
            request.output_tokens_max,
            request.tenant,
            request.user,
            request.model,
        ]
    )


def decode_request(text: str) -> ReserveRequest:
    """What `encode_request` wrote."""
    call_id, scopes, *rest = json.loads(text)
    limits = tuple(ScopeLimit(Scope(kind, key), limit, timezone) for kind, key, limit, timezone in scopes)
    return ReserveRequest(call_id, limits, *rest)
