"""The live page is one file that loads and runs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from agentao_gov.service.app import PAGE_HEADERS, page_html


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """Every address in it is its own, a name space, or data."""
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset", "action"))
            assert not any(name.startswith("on") or name == "style" for name, _ in attrs), tag

    Reader().feed(page_html())

    assert found
    assert all(value.startswith("data:") for value in found)
    assert set(re.findall(r"https?://[^'\"\s)]+", page_html())) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page_html()


def test_the_policy_allows_these_bytes_and_no_others() -> None:
    """Hashes, no unsafe-inline."""
    policy = PAGE_HEADERS["Content-Security-Policy"]

    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert policy.count("'sha256-") == 2
