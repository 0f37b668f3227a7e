"""`agentao-gov serve`: the session pool as an HTTP service."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentao_gov.commands._options import ApiKeyEnv, BaseUrl, Config, Mode, Model, Sets

if TYPE_CHECKING:
    from agentao_gov.config import ModelChoice, Overrides, ResolvedDeployment, ResolvedProfile

#: From the sweep of a killed service's workers to their address being free, at the most.
_CLOSES_S = 2.0


def command(
    config: Config = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where to listen; anything but loopback needs keys.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="Port; 0 takes a free one.")] = None,
    mode: Mode = None,
    workers: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="Processes over one ledger.")] = 1,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    sets: Sets = None,
    warden: Annotated[bool, typer.Option("--warden/--no-warden", help="A supervisor above the service.")] = True,
) -> int:
    """The session pool as an HTTP service: OpenAI-compatible and native API, metrics, a live page at `/`."""
    from agentao_gov.process.supervision import is_guarded, run_below_warden

    if warden and not is_guarded():
        # What must not survive this process, even when it is killed or hangs, has to be ended by another one.
        run_below_warden([sys.executable, "-P", "-m", "agentao_gov.main", *sys.argv[1:]])
    settings = {
        "config": None if config is None else str(config),
        "flags": {
            "server.host": ("--host", host),
            "server.port": ("--port", port),
            "pool.mode": ("--mode", mode),
        },
        "sets": list(sets or ()),
        "model": (model, base_url, api_key_env),
        "workers": workers,
    }
    return _serve(settings)


def _serve(settings: dict[str, Any]) -> int:
    import time

    from agentao_gov.clock import Deadline
    from agentao_gov.errors import ConfigError
    from agentao_gov.monitor.logs import configure_logging
    from agentao_gov.process.scratch import ScratchDirs
    from agentao_gov.process.supervision import Heartbeat
    from agentao_gov.process.sweep import sweep
    from agentao_gov.service.server import bind

    configure_logging()
    heart = Heartbeat()
    deployment = _deployment(settings)
    server = deployment.deployment.server
    # Before the address is taken: workers of a service that was killed with its wardens may still hold it.
    swept = sweep().killed
    # A killed process shows as dead a moment before its last thread has closed the socket.
    deadline = Deadline.after(_CLOSES_S if swept else 0.0)
    while True:
        try:
            listener = bind(server.host, server.port)
            break
        except ConfigError:
            if deadline.passed:
                raise
            time.sleep(0.02)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        settings["local_models"] = _start_local_models(deployment, settings, stack)
        _tell(deployment, listener, settings)
        settings["restarts"] = heart.restarts
        heart.start()
        stack.callback(heart.stop)
        if settings["workers"] > 1:
            peers = ScratchDirs(deployment.state_dir / "workers")
            stack.callback(peers.close)
            settings["peers"] = str(peers.make())
            from agentao_gov.service.workers import run_workers

            return run_workers(run_one, settings, listener, settings["workers"])
        return run_one(settings, 0, lambda: None, listener)


def run_one(settings: Mapping[str, Any], worker: int, started: Callable[[], None], listener: socket.socket) -> int:
    """One process's service, until its ladder is walked. Runs in each worker, and in the command itself with one."""
    from pathlib import Path

    from agentao_gov.monitor.logs import configure_logging
    from agentao_gov.runtime import build_runtime
    from agentao_gov.service.build import build_service, limits_per_worker, offered_profiles, warm_up
    from agentao_gov.service.peers import NO_PEERS, Peers, listen_for_peers
    from agentao_gov.service.server import serve

    configure_logging()
    deployment = _deployment(settings)
    offered = offered_profiles(deployment, _chooser(deployment, settings), _overrides(settings))
    deployment = limits_per_worker(deployment, settings["workers"])
    runtime = build_runtime(deployment)
    if deployment.deployment.pool.mode == "subprocess":
        runtime.subprocesses.warm_up()
    try:
        warm_up(runtime.governor, offered.values())
        service = build_service(
            deployment,
            runtime.pool,
            runtime.ledger,
            offered,
            worker=worker,
            workers=settings["workers"],
            restarts=settings["restarts"],
            not_ours=[local["pid"] for local in settings["local_models"].values()],
            peers=Peers(Path(settings["peers"]), worker, settings["workers"]) if "peers" in settings else NO_PEERS,
        )
        for observer in service.observers:
            runtime.observe(observer)
        started()
        try:
            peers = service.gateway.peers
            more = [listen_for_peers(peers.directory, worker)] if peers.workers > 1 else []
            return serve(service.app, service.gateway, listener, *more)
        finally:
            service.close()
    finally:
        runtime.close()


def _overrides(settings: Mapping[str, Any]) -> Overrides:
    from agentao_gov.config import Overrides

    return Overrides.given(settings["flags"], settings["sets"])


def _deployment(settings: Mapping[str, Any]) -> ResolvedDeployment:
    from agentao_gov.config import load_deployment

    return load_deployment(settings["config"], overrides=_overrides(settings))


def _chooser(deployment: ResolvedDeployment, settings: Mapping[str, Any]) -> Callable[[ResolvedProfile], ModelChoice]:
    """Chooses each profile's model; local ones get the address they were started at."""
    from agentao_gov.config import ModelFlags, resolve_model
    from agentao_gov.simulator.embedded import answered_by

    flags = ModelFlags(*settings["model"])

    def choose(profile: ResolvedProfile) -> ModelChoice:
        choice = resolve_model(flags, profile=profile, deployment=deployment)
        local = settings.get("local_models", {}).get(choice.kind)
        return choice if local is None else answered_by(choice, local["model"])

    return choose


def _start_local_models(
    deployment: ResolvedDeployment, settings: Mapping[str, Any], stack: contextlib.ExitStack
) -> dict[str, dict[str, Any]]:
    """Starts the local models that profiles use, one process each, ended with the stack."""
    from agentao_gov.service.build import offered_profiles
    from agentao_gov.simulator.embedded import running_model

    choices = [
        offer.model
        for offer in offered_profiles(deployment, _chooser(deployment, settings), _overrides(settings)).values()
    ]
    local: dict[str, dict[str, Any]] = {}
    for choice in {choice.kind: choice for choice in choices if choice.kind != "remote"}.values():
        model, process = stack.enter_context(running_model(choice))
        assert process is not None
        local[choice.kind] = {"model": model, "pid": process.pid}
    return local


def _tell(deployment: ResolvedDeployment, listener: socket.socket, settings: Mapping[str, Any]) -> None:
    """Says on standard error what is served, with which model, and where to look."""
    from agentao_gov.monitor.logs import log_event
    from agentao_gov.service.build import offered_profiles

    offered = offered_profiles(deployment, _chooser(deployment, settings), _overrides(settings))
    host, port = listener.getsockname()[:2]
    models = sorted({f"{offer.model.name} ({offer.model.source})" for offer in offered.values()})
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    for offer in offered.values():
        for finding in offer.resolved.findings:
            log_event("profile warning", 30, profile=offer.name, key=finding.key, detail=finding.message)
    for finding in deployment.findings:
        log_event("deployment warning", 30, key=finding.key, detail=finding.message)
    log_event(
        "starting", address=address, page=f"{address}/", mode=deployment.deployment.pool.mode,
        profiles=", ".join(offered), model="; ".join(models), workers=settings["workers"], pid=os.getpid(),
    )  # fmt: skip
