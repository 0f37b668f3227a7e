"""Keeps the OpenAI SDK's hands off an `httpx` that another thread is still importing.

The SDK sits on httpx2 and asks `sys.modules` for the older httpx before every request, to accept its objects too. The
first MCP server, web tool or failed call of a process imports it, which takes 60 ms: every other turn's call would end
with `partially initialized module 'httpx' has no attribute 'Timeout'` meanwhile (openai 3.54, agentao 0.5.17).
"""

from __future__ import annotations

import sys
from types import ModuleType

from openai import _httpx2

__all__ = ["install"]


def install() -> None:
    """Makes the SDK see `httpx` only once it is whole: until then nobody can hold an object of it. Idempotent."""
    if hasattr(_httpx2, "_loaded_legacy_httpx"):
        _httpx2._loaded_legacy_httpx = _whole_httpx


def _whole_httpx() -> ModuleType | None:
    module = sys.modules.get("httpx")
    if module is None or getattr(module.__spec__, "_initializing", False):
        return None
    return module
