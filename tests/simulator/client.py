"""A plain client for the simulator: what is on the wire, without an SDK's opinion about it."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any

from agentao_gov.simulator import Simulator

READ_FILE = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Reads a file.",
        "parameters": {"type": "object", "properties": {"file_path": {"type": "string"}}, "required": ["file_path"]},
    },
}


@dataclass
class Reply:
    """An answer, streamed or not."""

    status: int
    headers: dict[str, str]
    raw: bytes
    #: How reading ended early: the name of the exception, None when the answer was complete.
    broken: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[Any]:
        """The stream's events, `[DONE]` left out."""
        lines = self.raw.decode().replace("\r\n", "\n").split("\n")
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(item) for item in data if item != "[DONE]"]

    @property
    def text(self) -> str:
        """The streamed text."""
        choices = [c for event in self.events for c in event.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def usage(self) -> Any:
        found = [event["usage"] for event in self.events if event.get("usage")]
        return found[-1] if found else None

    @property
    def finish_reason(self) -> Any:
        reasons = [c["finish_reason"] for event in self.events for c in event.get("choices", ()) if c["finish_reason"]]
        return reasons[-1] if reasons else None

    @property
    def done(self) -> bool:
        return b"data: [DONE]" in self.raw


@dataclass
class Client:
    """Sends chat requests."""

    simulator: Simulator
    api_key: str = "key-a"
    timeout_s: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)

    def ask(
        self,
        question: str | list[dict[str, Any]],
        *,
        sim: dict[str, Any] | None = None,
        read_bytes: int | None = None,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> Reply:
        """Asks and reads the answer; `sim` becomes a directive, `read_bytes` reads so many and hangs up."""
        connection = self.send(question, sim=sim, headers=headers, **body)
        try:
            response = connection.getresponse()
            known = {k.lower(): v for k, v in response.getheaders()}
            reply = Reply(response.status, known, b"")
            try:
                reply.raw = response.read(read_bytes) if read_bytes is not None else response.read()
            except (http.client.IncompleteRead, OSError) as error:
                reply.broken = type(error).__name__
                reply.raw = getattr(error, "partial", b"")
            return reply
        finally:
            connection.close()

    def send(
        self,
        question: str | list[dict[str, Any]],
        *,
        sim: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> http.client.HTTPConnection:
        """Sends without reading; close the connection to go away."""
        if isinstance(question, str):
            text = question if sim is None else f"{question}\n@sim {json.dumps(sim)}"
            question = [{"role": "user", "content": text}]
        connection = http.client.HTTPConnection("127.0.0.1", self.simulator.port, timeout=self.timeout_s)
        payload = {"model": "m", "messages": question, **self.options, **body}
        sent = {"Authorization": f"Bearer {self.api_key}", **(headers or {})}
        connection.request("POST", "/v1/chat/completions", json.dumps(payload), sent)
        return connection

    def stream(self, question: str | list[dict[str, Any]], **body: Any) -> Reply:
        """Asks for a stream with usage."""
        return self.ask(question, stream=True, stream_options={"include_usage": True}, **body)
