"""What can be said of a `[model]` table before anything is sent: its address, and that no key stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from agentao_gov.config.findings import Finding
from agentao_gov.config.layers import Layers
from agentao_gov.config.profile import ModelSettings
from agentao_gov.config.validate import finding

__all__ = ["URL_FORM", "is_http_url", "looks_like_a_key", "model_findings", "shown_url"]

URL_FORM = "It looks like https://api.openai.com/v1 or http://127.0.0.1:8000/v1."
#: How the keys of providers begin; and hexadecimal or long mixtures of cases and digits, which no variable is called.
_KEY = re.compile(
    r"(sk|pk|rk|gsk|hf|xai|AIza|ya29|ghp)[-_A-Za-z0-9.]{16,}$|[0-9a-f]{32,}$|(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])\S{20,}$"
)


def looks_like_a_key(text: str) -> bool:
    """Whether somebody wrote the key itself where the name of its variable belongs."""
    return not text.isidentifier() or bool(_KEY.match(text))


def is_http_url(url: str) -> bool:
    """Whether a request could be sent there."""
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_ok and not re.search(r"\s", url)


def shown_url(url: str) -> str:
    """The address for a message, without a user name and password in it."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def model_findings(settings: ModelSettings | None, layers: Layers) -> Iterator[Finding]:
    """The errors of a `[model]` table. A key is never repeated."""
    if settings is None:
        return
    if settings.base_url is not None and not is_http_url(settings.base_url):
        text = f"{shown_url(settings.base_url)!r} is not an http(s) address. {URL_FORM.rstrip('.')}"
        yield finding(layers, "model.base_url", text, error=True)
    if settings.api_key_env is not None and looks_like_a_key(settings.api_key_env):
        text = "is not the name of an environment variable; name the variable that holds the key, never the key"
        yield finding(layers, "model.api_key_env", text, error=True)
    if settings.name is not None and not settings.name.strip():
        yield finding(layers, "model.name", "must not be empty", error=True)
