"""The program's own client answers with what it saw, whatever it met."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from agentao_gov.process.owner import host_token
from agentao_gov.testrig.client import HttpAnswer, Scrape, ServiceClient, exchange


@contextlib.contextmanager
def answering(body: str, kind: str = "application/json") -> Iterator[str]:
    """A service that answers every GET with this."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "http://127.0.0.1:99999", "http://[broken", "http://no.such.host.invalid"]
)
def test_a_connection_that_fails_is_an_answer(url: str) -> None:
    """Probes look for refusals of every kind; none of them may stop the walk."""
    answer = exchange(url, "GET", "/", timeout_s=5)

    assert answer.status == 0
    assert answer.error
    assert str(answer) == f"no answer ({answer.error})"


@pytest.mark.parametrize(
    ("headers", "seconds"), [({"retry-after": "1.5"}, 1.5), ({"retry-after": "Wed, 21 Oct 2026"}, None), ({}, None)]
)
def test_a_wait_is_read_where_it_is_a_number(headers: dict[str, str], seconds: float | None) -> None:
    """A date is none of ours."""
    assert HttpAnswer(429, headers).retry_after_s == seconds


def test_rows_are_the_objects_of_a_list_and_nothing_else() -> None:
    """A foreign service may answer anything."""
    with answering('{"data": [{"id": "a"}, 3, null, {"id": "b"}]}') as url:
        assert [row["id"] for row in exchange(url, "GET", "/v1/models").rows] == ["a", "b"]
    with answering('"a text"') as url:
        assert exchange(url, "GET", "/v1/models").rows == []


def test_a_scrape_sums_the_samples_that_carry_the_labels() -> None:
    """And tells what is missing from what is zero."""
    scrape = Scrape('x{a="1",b="2"} 3\nx{a="1",b="3"} 4\ny 0\n')

    assert (scrape.get("x"), scrape.get("x", b="3"), scrape.get("y"), scrape.get("z")) == (7, 4, 0, None)
    assert [labels["b"] for labels, _ in scrape.labelled("x")] == ["2", "3"]


@pytest.mark.parametrize(
    ("body", "pids"),
    [
        (f'{{"instance": {{"pid": 7, "host": "{host_token()}"}}}}', [7]),
        (f'{{"instance": {{"pid": 7, "pids": [7, 8], "host": "{host_token()}"}}}}', [7, 8]),
        ('{"instance": {"pid": 7, "host": "elsewhere"}}', []),
        ('{"instance": "none of yours"}', None),
        ("[]", None),
    ],
)
def test_the_serving_processes_are_those_that_the_service_names(body: str, pids: list[int] | None) -> None:
    """Where they mean nothing here there are none, and who does not say is not guessed at."""
    with answering(body) as url:
        assert ServiceClient(url).serving_pids() == pids
