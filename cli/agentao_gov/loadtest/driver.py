"""Runs the generator: Locust in processes of its own, fed with phases, read line by line, and watched.

Neither locust nor gevent is imported here: they patch the whole process, and agentao must never be in a patched one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agentao_gov.errors import ConfigError, InternalError, UsageError
from agentao_gov.loadtest.plan import LoadPlan, Phase
from agentao_gov.loadtest.record import PhaseRecord, SampleFile
from agentao_gov.resources import shipped
from agentao_gov.testrig.guarded import Guarded
from agentao_gov.testrig.service import free_port

#: Where a master listens for workers of other machines.
DEFAULT_PORT = 5557
#: Importing locust takes 0.8 s on an idle machine; a loaded one gets a generous guard.
_READY_S_MAX = 60.0
#: The generator writes a beat every 0.25 s; one that is silent for so long is hung.
_SILENCE_S_MAX = 15.0
#: The phase's second 0 lies so far ahead that every worker has read it by then.
_LEAD_S = 0.4
_LEAD_DISTRIBUTED_S = 1.5
_POLL_S = 0.1
#: Deleting sessions at the end of a phase is bounded at 15 s in the generator.
_TAIL_S_MAX = 25.0
_STOP_S = 3.0


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST` or `HOST:PORT`. Raises UsageError."""
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} is not HOST or HOST:PORT.")
    return host, int(port)


def run_worker(master: str) -> int:
    """Serves the master until it has finished; the worker's exit code. Plan and keys come from the master.

    Args:
        master: its address, `HOST` or `HOST:PORT`. Raises UsageError.
    """
    host, port = split_address(master)
    suite = shipped("loadtests")
    command = [*_locust(), "--worker", "--master-host", host, "--master-port", str(port)]
    # In our own folder: Locust puts the directory it runs in first on its module path, whatever -P says.
    worker = Guarded(command, cwd=suite, env=_environment(AGENTAO_GOV_LOADTEST="worker"), output=None)
    try:
        return worker.process.wait()
    except (KeyboardInterrupt, SystemExit):
        worker.process.terminate()
        worker.wait(_STOP_S)
        raise
    finally:
        worker.end()


def _locust() -> list[str]:
    return [sys.executable, "-P", "-m", "locust", "-f", str(shipped("loadtests") / "locustfile.py")]


def _environment(**own: str) -> dict[str, str]:
    """Locust reads LOCUST_* from the environment: the caller's must not change this run."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")} | own


class GeneratorDied(InternalError):
    """Raised when the load generator's process is gone or hung; the message has what it said last."""


class LoadDriver:
    """One generator: a single Locust process, or a master with workers. Use as a context manager."""

    def __init__(
        self,
        plan: LoadPlan,
        folder: Path,
        *,
        keys: Mapping[str, str] | None = None,
        web_port: int | None = None,
        bind: str | None = None,
        local_workers: bool = True,
    ) -> None:
        """Nothing is started yet.

        Args:
            plan: what is sent.
            folder: for plan, phases, samples and the generator's log.
            keys: API keys by tenant.
            web_port: where Locust shows its page; None: nowhere.
            bind: address for workers of other machines; None: one machine.
            local_workers: whether the workers of a distributed run are started here.
        """
        self._plan = plan
        # Absolute: the generator runs in it.
        self._folder = folder.absolute()
        self._keys = dict(keys or {})
        self._web_port = web_port
        self._bind = bind
        self._local_workers = local_workers
        self._processes: list[Guarded] = []
        self.file = SampleFile(self._folder / "samples.jsonl")
        #: Wall times of each phase's second 0 and of its end.
        self._spans: dict[int, tuple[float, float]] = {}

    def start(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Starts the processes and waits until every worker is there. Raises GeneratorDied."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / "plan.json").write_text(self._plan.model_dump_json())
        (self._folder / "phases.jsonl").touch(mode=0o600)
        distributed = self._plan.workers > 1 or self._bind is not None
        if distributed:
            host, port = split_address(self._bind) if self._bind else ("127.0.0.1", free_port())
            expect = f"--expect-workers={self._plan.workers}"
            self._spawn("--master", f"--master-bind-host={host}", f"--master-bind-port={port}", expect)
            if self._local_workers:
                for _ in range(self._plan.workers):
                    self._spawn("--worker", "--master-host=127.0.0.1", f"--master-port={port}")
        else:
            self._spawn()
        deadline = time.monotonic() + _READY_S_MAX if self._local_workers else float("inf")
        while not self.file.ready and not should_stop():
            self._check_alive()
            if time.monotonic() > deadline:
                raise GeneratorDied(f"It was not ready within {_READY_S_MAX:g} s. {self.last_words()}")
            time.sleep(_POLL_S)
            self.file.poll()

    def run_phase(
        self,
        phase: Phase,
        *,
        on_tick: Callable[[PhaseRecord, float], None] = lambda _record, _at: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> PhaseRecord:
        """Plays a phase to its end and returns its record; `started` is always fully booked, however it ends.

        Raises GeneratorDied when a process is gone or silent; the record is closed and in `file` then.
        `should_stop` ends the phase early: what is in flight is booked as unfinished.
        """
        lead_s = _LEAD_S if self._plan.workers == 1 and self._bind is None else _LEAD_DISTRIBUTED_S
        start_epoch = time.time() + lead_s
        placed = phase.model_copy(update={"start_epoch": start_epoch})
        with (self._folder / "phases.jsonl").open("a") as file:
            file.write(placed.model_dump_json() + "\n")
        record = self.file.phase(phase.index)
        self._spans[phase.index] = (start_epoch, 0.0)
        began = time.monotonic()
        latest = began + lead_s + phase.duration_s + phase.drain_s + _TAIL_S_MAX
        try:
            while len(record.ended) < self._plan.workers and not should_stop():
                self._check_alive()
                self._check_heard(record, began, latest)
                time.sleep(_POLL_S)
                self.file.poll()
                on_tick(record, time.time() - start_epoch)
        finally:
            self.file.poll()
            record.close(time.time() - start_epoch, complete=len(record.ended) >= self._plan.workers)
            self._spans[phase.index] = (start_epoch, time.time())
        return record

    def span(self, index: int) -> tuple[float, float]:
        """Wall times of a phase's second 0 and of its end; 0 for what has not come yet. Any thread may ask."""
        return self._spans.get(index, (0.0, 0.0))

    def finish(self) -> None:
        """Lets the generator write its last words and end by itself."""
        with (self._folder / "phases.jsonl").open("a") as file:
            file.write('{"end": true}\n')
        deadline = time.monotonic() + _STOP_S
        while time.monotonic() < deadline and any(each.process.poll() is None for each in self._processes):
            time.sleep(0.05)
        self.file.poll()

    def close(self) -> None:
        """Ends every process, by force where it does not listen."""
        for each in self._processes:
            each.process.terminate()
        deadline = time.monotonic() + _STOP_S
        for each in self._processes:
            each.wait(max(0.1, deadline - time.monotonic()))
            each.end()
        self.file.poll()

    def last_words(self) -> str:
        """The end of the generator's log, for an error message."""
        try:
            lines = (self._folder / "generator.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        # Below what it died of stands Locust's own table.
        telling = [line for line in lines if "rror" in line]
        return " | ".join((telling or lines)[-3:])[-400:]

    def __enter__(self) -> LoadDriver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_heard(self, record: PhaseRecord, began: float, latest: float) -> None:
        """Every worker that has not finished the phase beats; also one on another machine, whose process is not seen.

        Raises GeneratorDied.
        """
        now = time.monotonic()
        for worker in set(range(self._plan.workers)) - record.ended:
            silence_s = now - max(began, self.file.heard.get(worker, began))
            if silence_s > _SILENCE_S_MAX or now > latest:
                name = f"Worker {worker}" if self._plan.workers > 1 else "It"
                raise GeneratorDied(f"{name} was silent for {silence_s:.0f} s. {self.last_words()}")

    def _check_alive(self) -> None:
        for remark in self.file.remarks_of("failed"):
            raise GeneratorDied(str(remark.get("reason")))
        for each in self._processes:
            code = each.process.poll()
            if code is not None and not self.file.remarks_of("finished"):
                raise GeneratorDied(f"A process ended with {code}. {self.last_words()}")

    def _spawn(self, *options: str) -> None:
        command = [
            *_locust(),
            "--host",
            self._plan.target,
            "-u",
            str(self._plan.workers),
            "-r",
            str(self._plan.workers),
        ]
        if "--worker" not in options:
            command += ["--exit-code-on-error", "0", *self._view()]
        own = {"AGENTAO_GOV_LOADTEST": str(self._folder), "AGENTAO_GOV_LOADTEST_KEYS": json.dumps(self._keys)}
        with (self._folder / "generator.log").open("ab") as log:
            # Locust puts the directory it runs in first on its module path, whatever -P says.
            generator = Guarded([*command, *options], cwd=self._folder, env=_environment(**own), output=log)
        self._processes.append(generator)

    def _view(self) -> list[str]:
        if self._web_port is None:
            return ["--headless", "--only-summary"]
        return ["--autostart", "--web-host", "127.0.0.1", "--web-port", str(self._web_port)]


def check_port(flag: str, port: int) -> None:
    """Raises ConfigError, naming the `flag`, where something listens on the loopback `port` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"{flag} {port} cannot be had: {error.strerror}.", hint="Name another port.") from None
