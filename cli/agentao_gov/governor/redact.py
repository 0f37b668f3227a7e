"""Keeps secrets out of everything that is written: reports, logs, error texts."""

from __future__ import annotations

import logging
import re

__all__ = ["RedactingFilter", "redact"]

_PATTERNS = (
    # Keys of the big providers; the prefix stays, so that a reader sees what kind of key it was.
    re.compile(r"\b(sk-(?:proj-|ant-|or-)?)[A-Za-z0-9_\-]{8,}"),
    re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._\-]{8,}"),
    re.compile(r"(?i)((?:api[_-]?key|token|secret|password)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]{6,}"),
    # Credentials in a URL.
    re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^/\s:@]+:[^/\s@]+@"),
)
#: Stand-ins for a key where an endpoint wants none.
_NO_SECRETS = frozenset({"none", "not-needed"})
_MASK = r"\1[REDACTED]"


def redact(text: str, *secrets: str) -> str:
    """The text without the given secrets and whatever looks like one."""
    for secret in secrets:
        if len(secret) >= 4 and secret not in _NO_SECRETS:
            text = text.replace(secret, "[REDACTED]")
    for pattern in _PATTERNS:
        text = pattern.sub(_MASK, text)
    return text


class RedactingFilter(logging.Filter):
    """Redacts the records of a logger that agentao writes to."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record in place; lets it through."""
        try:
            record.msg = redact(record.getMessage())
        except (TypeError, ValueError):
            record.msg = "a log record that could not be rendered"
        record.args = ()
        # A traceback of the SDK quotes request bodies.
        record.exc_info = None
        record.exc_text = None
        return True
