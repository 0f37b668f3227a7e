"""Measures what sessions cost on this machine, in a process of its own: `python -m agentao_gov.monitor.session_cost`.

The order (JSON, on standard input) names deployment file, profile and the address of a simulated model; the answer is
one JSON line.
A fresh process has a clean base line, and its memory is not the caller's.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import SecretStr

from agentao_gov.clock import Deadline
from agentao_gov.governor.report import Mode
from agentao_gov.monitor.capacity import McpMeasured, Measured

if TYPE_CHECKING:
    from agentao_gov.config import Profile, ResolvedProfile
    from agentao_gov.governor.types import Conversation
    from agentao_gov.pool.host import HostFactory, SessionHost

#: Sessions opened to find the cost of one. Enough to stand out of the allocator's noise.
EMPTY_SESSIONS = 60
FULL_SESSIONS = 40
#: Sessions in processes of their own cost a hundred times as much to start.
SUBPROCESS_SESSIONS = 3
TURNS = 15
#: A message of a full conversation; about 450 tokens.
MESSAGE_CHARS = 2_000
#: System prompt and tools, and room below the cap so that the turn itself does not begin to summarise.
PROMPT_TOKENS = 6_000
OPEN_S_MAX = 60.0

_LIBC = ctypes.CDLL(None)


class SessionCostMeter:
    """One measuring of one profile in one mode."""

    def __init__(self, order: dict[str, Any], workdir: Path) -> None:
        from agentao_gov.budget import MemoryStore, TokenLedger
        from agentao_gov.config import ModelChoice, Overrides, load_deployment, load_profile
        from agentao_gov.governor import Governor

        for module in order.get("imports", ()):
            # What the service holds beside sessions: it is part of the base line.
            importlib.import_module(module)
        self._workdir = workdir
        self._mode: Mode = order["mode"]
        overrides = Overrides(sets=tuple(order.get("sets", ())))
        deployment = load_deployment(order["config"], overrides=overrides)
        self._profile = load_profile(order["profile"], deployment=deployment, overrides=overrides)
        self._model = ModelChoice("simulated", "simulated", order["base_url"], SecretStr("probe"), None, "plan")
        self._ledger = TokenLedger(MemoryStore())
        self._governor = Governor(ledger=self._ledger)
        self._factory: HostFactory = self._make_factory()
        self._opened = 0
        self._me = psutil.Process()

    def _make_factory(self) -> HostFactory:
        if self._mode == "subprocess":
            from agentao_gov.worker.factory import SubprocessFactory

            return SubprocessFactory(ledger=self._ledger)
        return _InProcess(self._governor)

    def run(self, began: float) -> Measured:
        """Everything, in order of growing weight."""
        bare = _without_mcp(self._profile)
        self._close(self._one_turn(bare))
        start_s = time.time() - began
        base, base_fds = self._bytes(), self._me.num_fds()
        many = self._mode != "subprocess"
        empty, open_ms, fds, processes = self._sessions(bare, EMPTY_SESSIONS if many else SUBPROCESS_SESSIONS, None)
        full_talk, tokens = full_conversation(self._profile.profile)
        full, _, _, _ = self._sessions(bare, FULL_SESSIONS if many else SUBPROCESS_SESSIONS, full_talk)
        return Measured(
            mode=self._mode,
            base_bytes=base,
            base_fds=base_fds,
            start_s=round(start_s, 3),
            open_ms=open_ms,
            session_empty_bytes=empty,
            session_full_bytes=max(full, empty),
            full_tokens=tokens,
            session_fds=fds,
            session_processes=processes,
            cpu_ms_empty=self._cpu_ms(bare, None),
            cpu_ms_full=self._cpu_ms(bare, full_talk),
            mcp=tuple(self._server(name) for name in self._profile.profile.mcp.servers),
        )

    def _open(self, profile: ResolvedProfile, talk: Conversation | None) -> SessionHost:
        from agentao_gov.governor.types import SessionKey, SessionSpec
        from agentao_gov.process.tags import child_env, session_tag

        self._opened += 1
        key = SessionKey("plan", f"s{self._opened}")
        spec = SessionSpec(
            key=key, user="plan", profile=profile, model=self._model, workdir=self._workdir / key.session,
            mode=self._mode, child_env=child_env(session_tag(key.tenant, key.session)),
        )  # fmt: skip
        # Strings of its own for each session, as when each has its own conversation.
        own = None if talk is None else replace(talk, messages=[_own_strings(message) for message in talk.messages])
        return self._factory.open(spec, own, Deadline.after(OPEN_S_MAX))

    def _turn(self, host: SessionHost) -> None:
        from agentao_gov.governor.types import TurnRequest

        self._opened += 1
        report = host.turn(TurnRequest(f"t{self._opened}", "What is four times four?", "plan"), lambda _: None)
        if not report.has_answer:
            why = report.for_operator().detail
            raise RuntimeError(f"a turn on the simulated model ended with {report.outcome}: {why}")

    def _one_turn(self, profile: ResolvedProfile) -> SessionHost:
        host = self._open(profile, None)
        self._turn(host)
        return host

    def _close(self, *hosts: SessionHost) -> None:
        for host in hosts:
            host.close(Deadline.after(10))

    def _bytes(self) -> int:
        """This process and its children, proportionally where pages are shared."""
        gc.collect()
        # What closed sessions gave back to the allocator would otherwise hide what the next ones take.
        _LIBC.malloc_trim(0)
        total = self._me.memory_info().rss
        for child in self._me.children(recursive=True):
            try:
                total += int(child.memory_full_info().pss)
            except psutil.Error:
                continue
        return total

    def _sessions(
        self, profile: ResolvedProfile, count: int, talk: Conversation | None
    ) -> tuple[int, float, float, int]:
        """Bytes, milliseconds to open, descriptors and processes of one session, each after a turn."""
        # What was freed before leaves holes that the first sessions would fill unseen: 40 full ones of 220 KB each
        # seemed to take 62. In a process of its own a session fills no holes here.
        ballast = [self._open(profile, talk) for _ in range(count if self._mode != "subprocess" else 0)]
        for host in ballast:
            self._turn(host)
        before, fds = self._bytes(), self._me.num_fds()
        children = len(self._me.children(recursive=True))
        hosts, times = [], []
        for _ in range(count):
            began = time.perf_counter()
            hosts.append(self._open(profile, talk))
            times.append((time.perf_counter() - began) * 1000)
        for host in hosts:
            self._turn(host)
        each = max(0, self._bytes() - before) // count
        each_fds = max(0, self._me.num_fds() - fds) / count
        processes = round(max(0, len(self._me.children(recursive=True)) - children) / count)
        self._close(*hosts, *ballast)
        return each, round(statistics.median(times), 2), each_fds, processes

    def _cpu_ms(self, profile: ResolvedProfile, talk: Conversation | None) -> float:
        """CPU of one turn, the session process's included."""
        host = self._open(profile, talk)
        self._turn(host)
        began = self._cpu_s()
        for _ in range(TURNS):
            self._turn(host)
        used = self._cpu_s() - began
        self._close(host)
        return round(used / TURNS * 1000, 2)

    def _cpu_s(self) -> float:
        total = 0.0
        for process in [self._me, *self._me.children(recursive=True)]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def _server(self, name: str) -> McpMeasured:
        """One MCP server, started as a session starts it."""
        server = self._profile.profile.mcp.servers[name]
        before, children = self._bytes(), len(self._me.children(recursive=True))
        began = time.perf_counter()
        host = self._open(_with_only(self._profile, name), None)
        start_s = time.perf_counter() - began
        processes = len(self._me.children(recursive=True)) - children
        used = self._bytes() - before
        self._close(host)
        return McpMeasured(name, max(0, used), max(0, processes), round(start_s, 3), server.share)


class _InProcess:
    """The in-process factory, without a pool."""

    def __init__(self, governor: Any) -> None:
        self._governor = governor

    def open(self, spec: Any, conversation: Any, deadline: Deadline) -> SessionHost:
        host: SessionHost = self._governor.open(spec, conversation, deadline)
        return host

    def shutdown(self, deadline: Deadline) -> None:
        del deadline


def full_conversation(profile: Profile) -> tuple[Conversation, int]:
    """A conversation that fills the profile's context, and how many tokens it has."""
    from agentao_gov.governor.tokens import count_tokens
    from agentao_gov.governor.types import Conversation

    room = max(1_000, int((profile.limits.max_context_tokens - PROMPT_TOKENS) * 0.75))
    text = ("The quick brown fox looks at the report and asks what the figures of the third quarter mean. " * 40)[
        :MESSAGE_CHARS
    ]
    # agentao compacts at 80 % of the window and counts a token for four characters: a conversation that is full by
    # the tokenizer alone is summarised in its first turn, and what is measured then is a short one.
    each = max(count_tokens(text), len(text) // 4) + 8
    count = max(2, room // each // 2 * 2)
    roles = ("user", "assistant")
    # Each message is a string of its own, as a real conversation's are.
    messages = [{"role": roles[n % 2], "content": f"{n}: {text}"} for n in range(count)]
    return Conversation(messages=messages), count * each


def _own_strings(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: "".join(list(value)) if isinstance(value, str) else value for key, value in message.items()}


def _without_mcp(profile: ResolvedProfile) -> ResolvedProfile:
    return _with_servers(profile, {})


def _with_only(profile: ResolvedProfile, name: str) -> ResolvedProfile:
    return _with_servers(profile, {name: profile.profile.mcp.servers[name]})


def _with_servers(profile: ResolvedProfile, servers: dict[str, Any]) -> ResolvedProfile:
    mcp = profile.profile.mcp.model_copy(update={"servers": servers})
    return replace(profile, profile=profile.profile.model_copy(update={"mcp": mcp}))


def main() -> None:
    """Reads the order from standard input, writes the answer to standard output."""
    began = psutil.Process().create_time()
    order = json.load(sys.stdin)
    with tempfile.TemporaryDirectory(prefix="agentao-gov-plan-") as folder:
        measured = SessionCostMeter(order, Path(folder)).run(began)
    sys.stdout.write(json.dumps(asdict(measured)) + "\n")
    sys.stdout.flush()
    # Threads of MCP clients may linger; everything that matters has been written.
    os._exit(0)


if __name__ == "__main__":
    main()
