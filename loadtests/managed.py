"""Locust under `agentao-gov loadtest`: takes a plan, plays its phases, gives every raw sample back.

The parent writes `plan.json` and then a line a phase to `phases.jsonl`; this process writes `samples.jsonl`. With
workers, the master passes plan and phases on as messages and collects their samples the same way, so that a worker
may stand on another machine.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import gevent
from flask import Response, jsonify, request
from gevent.queue import Queue
from locust import User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from agentao_gov.loadtest.client import TurnClient
from agentao_gov.loadtest.generator import LoadGenerator
from agentao_gov.loadtest.plan import LoadPlan, Phase
from agentao_gov.loadtest.record import TurnSample

POLL_S = 0.05
FLUSH_S = 0.1
KEYS = "AGENTAO_GOV_LOADTEST_KEYS"
#: Locust's buttons EDIT and NEW by their colours: a schedule knows no users.
HIDDEN = b"<style>.MuiButton-containedSecondary, .MuiButton-containedSuccess { display: none }</style>"


class Planned(User):
    """Stands for the whole plan in Locust's own views; the generator does the work."""

    @task
    def idle(self) -> None:
        gevent.sleep(1)


class Sink:
    """Gathers lines and passes them on several times a second: to a file, or to the master."""

    def __init__(self, write: Any) -> None:
        self._lines: list[str] = []
        self._write = write
        #: Whether all is said: Locust's own way down says "stopped" once more.
        self.finished = False
        self._flusher = gevent.spawn(self._run)

    def emit(self, line: str) -> None:
        self._lines.append(line)

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._write(lines)

    def _run(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            self.flush()


def to_file(path: Path) -> Any:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return lambda lines: os.write(handle, ("\n".join(lines) + "\n").encode())


class Counted:
    """Counts Locust's own events in this process; its statistics do not: a worker's are emptied every 3 seconds."""

    def __init__(self) -> None:
        self.requests = self.failures = 0
        events.request.add_listener(self)

    def __call__(self, exception: BaseException | None = None, **_: Any) -> None:
        self.requests += 1
        self.failures += exception is not None


def report_to_locust(sample: TurnSample) -> None:
    """Locust's own statistics: shown in its web UI, and a cross-check in the report."""
    events.request.fire(
        request_type="turn",
        name=sample.profile,
        response_time=sample.service_us / 1000,
        response_length=sample.completion_tokens,
        exception=None if sample.outcome == "answered" else RuntimeError(sample.outcome),
        context={},
    )


def play(environment: Environment, plan: LoadPlan, keys: dict[str, str], inbox: Queue, sink: Sink, worker: int) -> None:
    """Plays phases as they come until told to end."""
    counted = Counted()
    client = TurnClient(plan.target, keys=keys, api=plan.api)
    generator = LoadGenerator(plan, client, sink.emit, worker=worker, on_sample=report_to_locust)
    while (item := inbox.get()) is not None:
        phase = Phase.model_validate(item)
        try:
            generator.play(phase)
        finally:
            client.renew()
            sink.emit(json.dumps({"t": "locust", "worker": worker, **figures_of(environment, counted)}))
            sink.emit(json.dumps({"t": "phase_end", "phase": phase.index, "worker": worker}))
            sink.flush()
    client.close()


def figures_of(environment: Environment, counted: Counted) -> dict[str, Any]:
    """What Locust itself has counted in this process so far."""
    total = environment.stats.total
    return {
        "requests": counted.requests,
        "failures": counted.failures,
        "p50": total.get_response_time_percentile(0.5),
        "p95": total.get_response_time_percentile(0.95),
    }


def phases_from(path: Path, inbox: Queue) -> None:
    """Follows the parent's file."""
    seen = 0
    while True:
        text = path.read_text() if path.exists() else ""
        lines = text[seen:].splitlines(keepends=True)
        for line in lines:
            if not line.endswith("\n"):
                break
            seen += len(line)
            item = json.loads(line)
            inbox.put(None if item.get("end") else item)
            if item.get("end"):
                return
        gevent.sleep(POLL_S)


@events.init.add_listener
def start(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        gevent.spawn(run_worker, environment, runner)
        return
    folder = Path(os.environ["AGENTAO_GOV_LOADTEST"])
    sink = Sink(to_file(folder / "samples.jsonl"))
    show(environment, sink)
    if isinstance(runner, MasterRunner):
        gevent.spawn(telling, sink, run_master, environment, runner, folder, sink)
    else:
        gevent.spawn(telling, sink, run_alone, environment, folder, sink)


def show(environment: Environment, sink: Sink) -> None:
    """Locust's page shows the run and can stop it; what a plan does not know is not offered."""

    @events.test_stop.add_listener
    def stopped(**_: Any) -> None:
        if not sink.finished:
            sink.emit('{"t":"stopped"}')

    if environment.web_ui is None:
        return
    app = environment.web_ui.app

    @app.before_request
    def refuse() -> Response | None:
        if not request.path.endswith("/swarm"):
            return None
        return jsonify({"success": False, "message": "The plan of `agentao-gov loadtest` says what is sent."})

    @app.after_request
    def hide(response: Response) -> Response:
        if response.mimetype == "text/html" and not response.direct_passthrough:
            response.set_data(response.get_data().replace(b"</head>", HIDDEN + b"</head>"))
        return response


def telling(sink: Sink, function: Any, *args: Any) -> None:
    """Runs the function; what it dies of goes to the command, which would otherwise wait for a silent generator."""
    try:
        function(*args)
    except Exception as error:
        sink.emit(json.dumps({"t": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}))
        sink.flush()
        raise


def run_alone(environment: Environment, folder: Path, sink: Sink) -> None:
    plan = LoadPlan.model_validate_json((folder / "plan.json").read_text())
    inbox: Queue = Queue()
    gevent.spawn(phases_from, folder / "phases.jsonl", inbox)
    sink.emit('{"t":"ready","workers":1}')
    play(environment, plan, json.loads(os.environ.get(KEYS, "{}")), inbox, sink, worker=0)
    finish(environment, sink)


def run_master(environment: Environment, runner: MasterRunner, folder: Path, sink: Sink) -> None:
    plan = LoadPlan.model_validate_json((folder / "plan.json").read_text())
    runner.register_message("samples", lambda msg, **_: [sink.emit(line) for line in msg.data["lines"]])
    inbox: Queue = Queue()
    gevent.spawn(phases_from, folder / "phases.jsonl", inbox)
    while len(runner.clients.running) < plan.workers:
        gevent.sleep(POLL_S)
    keys = json.loads(os.environ.get(KEYS, "{}"))
    runner.send_message("plan", {"plan": plan.model_dump(mode="json"), "keys": keys})
    sink.emit(json.dumps({"t": "ready", "workers": plan.workers}))
    while (item := inbox.get()) is not None:
        # With the master's clock, so that a worker's own may be wrong.
        runner.send_message("phase", {"phase": item, "now": time.time()})
    runner.send_message("phase", {"end": True})
    finish(environment, sink)


def run_worker(environment: Environment, runner: WorkerRunner) -> None:
    plans: Queue = Queue()
    inbox: Queue = Queue()
    runner.register_message("plan", lambda msg, **_: plans.put(msg.data))
    runner.register_message("phase", lambda msg, **_: inbox.put(None if msg.data.get("end") else on_my_clock(msg.data)))
    sink = Sink(lambda lines: runner.send_message("samples", {"lines": lines}))
    data = plans.get()
    telling(sink, run_share, environment, data, inbox, sink, runner.worker_index)


def run_share(environment: Environment, data: dict[str, Any], inbox: Queue, sink: Sink, worker: int) -> None:
    play(environment, LoadPlan.model_validate(data["plan"]), data["keys"], inbox, sink, worker=worker)


def on_my_clock(message: dict[str, Any]) -> dict[str, Any]:
    """The phase with its start on this machine's clock; the message's own way takes milliseconds and is in it."""
    phase: dict[str, Any] = message["phase"]
    return {**phase, "start_epoch": phase["start_epoch"] + time.time() - message["now"]}


def finish(environment: Environment, sink: Sink) -> None:
    """Says that all is said, and ends Locust."""
    sink.finished = True
    sink.emit('{"t":"finished"}')
    sink.flush()
    assert environment.runner is not None
    environment.runner.quit()
