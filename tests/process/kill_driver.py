"""Runs services that get killed: `python -m tests.process.kill_driver`, a scenario a line on standard input.

Imports everything once, then forks each service below a pair of wardens: what takes two seconds in life takes none
here, and the wardens are the real ones. Stays single-threaded, as every forking process must.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr

from agentao_gov.clock import SYSTEM_CLOCK, Deadline
from agentao_gov.config import ModelChoice, load_deployment
from agentao_gov.errors import GovError
from agentao_gov.governor import SessionKey, TurnReport
from agentao_gov.governor.governor import Governor
from agentao_gov.pool import AgentPool, Rung, RungTimes, SessionArchive
from agentao_gov.pool.events import EndedByShutdown, PoolEvent, RungEntered
from agentao_gov.pool.types import TurnOrder
from agentao_gov.process import Owner, warden
from agentao_gov.worker import zygote
from agentao_gov.worker.factory import SubprocessFactory, SubprocessSettings
from agentao_gov.worker.spawn import ZygoteSpawner
from tests.governor.harness import resolved, say
from tests.process.kill_points import KINDS, Trap, TrappedFactory, alive_in, step_of

ZOO = Path(__file__).with_name("mcp_zoo.py")
TURN_S = 20.0
#: What has been done when a rung of the way down begins.
AFTER = {
    Rung.DRAINING: "lame_duck",
    Rung.CANCELLING: "drain_begins",
    Rung.KILLING: "close_all",
    Rung.GONE: "kill_all",
}


class Forked:
    """What `ZygoteSpawner` needs of a `Popen`, over a fork."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = False

    def poll(self) -> int | None:
        if not self._ended:
            self._ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        return 0 if self._ended else None

    def wait(self, timeout: float | None = None) -> int:
        until = time.monotonic() + (timeout or 60)
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.001)
        return 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class ForkedZygote(ZygoteSpawner):
    """A zygote that need not import anything: this process has."""

    def _launch(self, control: socket.socket) -> Any:
        theirs = os.dup(control.fileno())
        pid = os.fork()
        if pid == 0:
            warden.name_process("gov-zygote")
            control.close()
            with contextlib.suppress(Exception):
                zygote.serve(socket.socket(fileno=theirs))
            os._exit(0)
        os.close(theirs)
        return Forked(pid)


class Service:
    """A pool with five sessions, walked through its life."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.mode = order["mode"]
        self.directory = Path(order["directory"])
        self.trap = Trap(self.directory, order["phase"], order["point"])
        self.until = order["phase"]
        file = self.directory / "agentao-gov.toml"
        file.write_text('[budget]\nstore = "memory"\n[pool]\nmax_opening = 5\nready_workers = 0\n')
        os.environ["AGENTAO_GOV_STATE"] = str(self.directory / "state")
        deployment = load_deployment(str(file))
        from agentao_gov.budget import open_ledger

        # Before any thread: the zygote is a fork of this process.
        spawner = ForkedZygote({})
        if self.mode == "subprocess":
            spawner.start(Deadline.after(30))
        ledger = open_ledger(deployment)
        governor = Governor(ledger=ledger, deployment=deployment)
        subprocesses = SubprocessFactory(
            ledger=ledger, deployment=deployment, settings=SubprocessSettings(ready=0), zygote=spawner
        )

        class Here:
            """Sessions in this process."""

            open = staticmethod(governor.open)

            def shutdown(self, deadline: Deadline) -> None:
                governor.close()

        here = TrappedFactory(Here(), self.trap, self.directory)
        there = TrappedFactory(subprocesses, self.trap, self.directory)
        archive = SessionArchive(deployment.state_dir / "sessions", clock=SYSTEM_CLOCK, step=step_of(self.trap))
        self.pool = AgentPool(deployment, {"fresh": here, "in-process": here, "subprocess": there}, archive)
        self.model = ModelChoice(
            kind="simulated",
            name="simulated",
            base_url=order["base_url"],
            api_key=SecretStr("sk-simulated"),
            context_window=None,
            source="test",
        )

    def submit(self, kind: str, message: str, timeout_s: float = TURN_S) -> Future[TurnReport]:
        servers = {"zoo": {"command": sys.executable, "args": ["-I", "-S", str(ZOO), kind, str(self.directory)]}}
        profile = resolved(
            limits={"turn_timeout": timeout_s, "cancel_grace": 1, "tool_timeout": timeout_s},
            tools={"permission_mode": "full-access", "allow": ["run_shell_command"], "sandbox": "off"},
            mcp={"servers": {"zoo": {**servers["zoo"], "startup_timeout": "20s", "request_timeout": "20s"}}},
        )
        turn = TurnOrder(
            key=SessionKey("acme", kind), user="ann", profile=profile, model=self.model, message=message,
            turn_id=os.urandom(8).hex(), mode=self.mode, deadline=Deadline.after(TURN_S),
        )  # fmt: skip
        return self.pool.submit(turn)

    def ask_all(self, message: str, timeout_s: float = TURN_S) -> list[Future[TurnReport]]:
        return [self.submit(kind, message, timeout_s) for kind in KINDS]

    def walk(self) -> None:
        """From the first opening to the last kill, or to the trap."""
        for phase in (
            *("opening", "hibernating", "leaving"),
            *("idle", "working", "evicting", "returning", "deleting", "draining"),
        ):
            # What comes before the wanted phase is only walked where the wanted one needs it.
            first = "opening" if self.until not in ("hibernating", "leaving") else self.until
            if phase in {first, self.until} or (phase, self.until) == ("evicting", "returning"):
                self.trap.phase = phase
                getattr(self, phase)()
            if phase == self.until:
                return

    def opening(self) -> None:
        for future in self.ask_all(say(text="hello there")):
            finish(future)

    def hibernating(self) -> None:
        self.opening()

    def leaving(self) -> None:
        """What a fresh session does after its turn."""
        self.opening()
        while self.pool.stats().resident:
            time.sleep(0.001)
        self.trap.at("removed")

    def idle(self) -> None:
        self.trap.at("idle")

    def working(self) -> None:
        tool = {"tool": {"name": "mcp_zoo_wait", "args": {}, "rounds": "endless"}}
        back = self.background()
        front = run_shell(f"{self.note_shell()}; touch {self.directory}/shell_called; exec sleep 60")
        self.trap.when_written("called", "tool_running", 0)
        point = self.trap.wanted[1]
        last = front if point in ("shell_running", "cancelled", "late") else {"text": "done"}
        if point == "shell_running":
            self.trap.when_written("shell_called", "shell_running", -1)
        futures = self.ask_all(say(steps=[tool, back, last]), 0.8 if point == "late" else TURN_S)
        if point == "cancelled":
            called = self.directory / "shell_called"
            while not called.exists():
                time.sleep(0.001)
            for kind in KINDS:
                self.pool.cancel(SessionKey("acme", kind))
            self.trap.at("cancelled")
        for future in futures:
            finish(future)
        self.trap.at("late")

    def evicting(self) -> None:
        """A pool that shrinks to one session lets the others go."""
        self.pool.resize(replace(self.pool.limits, max_sessions=1))
        while self.pool.stats().resident > 1:
            time.sleep(0.001)
        self.trap.at("hibernated")
        self.pool.resize(replace(self.pool.limits, max_sessions=50))

    def returning(self) -> None:
        self.opening()

    def deleting(self) -> None:
        # The stubborn one takes its close four seconds; it is alive all the same when the others are gone.
        for kind in KINDS:
            if kind != "stubborn":
                self.pool.delete(SessionKey("acme", kind))
        self.trap.at("deleted")

    def background(self) -> dict[str, Any]:
        """A step that leaves a shell in the background, which writes itself down."""
        return run_shell(f"{self.note_shell()}; exec sleep 60", is_background=True)

    def note_shell(self) -> str:
        """A shell's way to write itself down."""
        start = "$(sed 's/.*) //' /proc/$$/stat | cut -d' ' -f20)"
        return f"echo $$ {start} shell >> {self.directory}/shells"

    def draining(self) -> None:
        """Turns with a shell in the background hang while the ladder is walked; where it closes, some sessions idle."""
        busy = KINDS[:2] if self.trap.wanted[1] == "closing" and self.mode != "fresh" else KINDS
        for kind in busy:
            self.submit(kind, say(steps=[self.background(), {"fault": "hang"}]))
        while alive_in(self.directory)["shell"] < len(busy):
            time.sleep(0.001)
        self.pool.subscribe(self.on_rung)
        self.pool.close(RungTimes(0.0, 0.0, 0.0, close_s=0.1, kill_s=0.02))

    def on_rung(self, event: PoolEvent) -> None:
        """A rung begins when the one before has done its work; what is cancelled is told at once."""
        if isinstance(event, EndedByShutdown) and event.rung is Rung.CANCELLING:
            self.trap.at("cancelling")
        elif isinstance(event, RungEntered) and event.rung in AFTER:
            self.trap.at(AFTER[event.rung])


def run_shell(command: str, **more: Any) -> dict[str, Any]:
    """A step of the simulated model: this command, whatever round of the loop it is."""
    arguments = {"command": command, **more}
    return {"tool": {"name": "run_shell_command", "args": arguments, "rounds": "endless"}}


def finish(future: Future[TurnReport]) -> None:
    """A turn's end, whatever it is: the trap is what counts."""
    try:
        report = future.result(60)
        sys.stderr.write(f"{report.session} {report.outcome} {report.detail} {report.warnings}\n")
    except GovError as error:
        sys.stderr.write(f"{error!r}\n")


def service_main(order: dict[str, Any]) -> NoReturn:
    """The service, which is not meant to come back."""
    directory = Path(order["directory"])
    owner = Owner.me()
    (directory / "owner.tmp").write_text(f"{owner.ref.pid} {owner.ref.start}")
    (directory / "owner.tmp").rename(directory / "owner")
    try:
        Service(order).walk()
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(3)


def serve_order(order: dict[str, Any], _beat: int) -> NoReturn:
    """What the inner warden runs."""
    service_main(order)


def main() -> None:
    zygote.preload()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(f"{order['directory']}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            options = warden.Options(grace_s=0.0)
            warden.supervise_pair(functools.partial(serve_order, order), options, pid_namespace=False)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
