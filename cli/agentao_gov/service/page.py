"""The live page at `/`: one self-contained file, sent with a policy that lets it load nothing but its own figures."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

__all__ = ["PAGE_HEADERS", "page_html"]


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
