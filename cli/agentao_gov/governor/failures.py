"""Says in a sentence what went wrong with a model: what happened, with the figures, and what to look at."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import httpx2
import openai

from agentao_gov.governor.reason import Reason
from agentao_gov.governor.redact import redact

__all__ = ["NotAModelError", "describe_failure", "status_of"]

_TEXT_CHARS_MAX = 400
_LOOK_AT = {
    400: "the request: the model may not know a parameter or a tool",
    401: "the API key",
    403: "what the API key may do",
    404: "the model's name and the base URL",
    413: "max_context_tokens: the request is larger than the endpoint takes",
    429: "the account's rate limits and quota",
}
_SERVER_ERRORS = 500
_KINDS = {
    401: "rejected the service's key",
    403: "rejected the service's key",
    404: "does not know the model",
    413: "found the request too large",
    429: "limits the rate of requests",
}


class NotAModelError(Exception):
    """The endpoint answered, but not as a model does. With a `status_code` it is a refusal, which cost nothing."""

    def __init__(self, what: str, status_code: int | None = None) -> None:
        super().__init__(f"it answered with {what} instead of a model's answer")
        self.status_code = status_code


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status a provider answered with instead of an answer."""
    if error is not None and _redirects(error):
        return int(HTTPStatus.TEMPORARY_REDIRECT)
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def _redirects(error: BaseException) -> bool:
    return isinstance(error.__cause__, httpx2.TooManyRedirects)


def describe_failure(error: BaseException, *, base_url: str, sent: bool, secret: str) -> Reason:
    """The failure for a report. `sent`: whether a request had left.

    A tenant learns of what kind it is; the operator also which endpoint, and what it said. Secrets are redacted in
    both, and their length is bounded.
    """
    notes = "; ".join(getattr(error, "__notes__", ()))
    text = redact(_sentence(error, base_url, sent), secret)[:_TEXT_CHARS_MAX]
    after = f" ({notes})" if notes else ""
    return Reason(_kind(error, sent) + after, text + after)


def _kind(error: BaseException, sent: bool) -> str:
    """What a tenant may know: nothing that the provider said, nor where it is."""
    status = status_of(error)
    if isinstance(error, NotAModelError | json.JSONDecodeError):
        return "The model's endpoint did not answer as an OpenAI-compatible model does."
    if isinstance(error, openai.APITimeoutError):
        return f"The model did not {'answer' if sent else 'accept a connection'} in time."
    if _redirects(error):
        return "The model's endpoint only redirects."
    if isinstance(error, openai.APIConnectionError):
        return "The connection to the model broke." if sent else "The model cannot be reached."
    if status is None:
        return "The model's answer ended with an error."
    if status in _KINDS:
        return f"The model's provider {_KINDS[status]} ({status})."
    words = "had a server error" if status >= _SERVER_ERRORS else "rejected the request"
    return f"The model's provider {words} ({status})."


def _sentence(error: BaseException, base_url: str, sent: bool) -> str:
    if isinstance(error, NotAModelError):
        return f"The endpoint {base_url} is no model: {error}. Check the base URL."
    if isinstance(error, openai.APITimeoutError):
        return f"The model at {base_url} did not {'answer' if sent else 'accept a connection'} in time."
    if _redirects(error):
        return f"The endpoint {base_url} only redirects to other addresses. Check the base URL."
    if isinstance(error, openai.APIConnectionError):
        cause = str(error.__cause__ or error).strip() or type(error.__cause__).__name__
        if sent:
            return f"The connection to the model at {base_url} broke: {cause}"
        return f"The model at {base_url} cannot be reached: {cause}. Check the base URL and that it runs."
    status = status_of(error)
    if status is not None:
        look = f" Check {_LOOK_AT[status]}." if status in _LOOK_AT else ""
        return f"The model at {base_url} answered {status}: {_message(error).rstrip('.')}.{look}"
    if isinstance(error, json.JSONDecodeError):
        return f"The answer of the model at {base_url} is not readable: {error}"
    return f"The model at {base_url} failed: {_message(error)}"


def _message(error: BaseException) -> str:
    """The provider's own words, without the SDK's around them."""
    body: Any = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    words = inner.get("message") if isinstance(inner, dict) else None
    return str(words or error).strip() or type(error).__name__
