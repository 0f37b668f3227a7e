"""`agentao-gov loadtest`: drive the session pool to its capacity, with a gate.

Neither locust nor gevent is imported in this process: the generator is a child of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentao_gov.commands import _loadtest_options as option
from agentao_gov.commands._options import BaseUrl, Config, Model

if TYPE_CHECKING:
    from agentao_gov.loadtest.document import LoadTestReport
    from agentao_gov.loadtest.options import LoadOptions

app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True, no_args_is_help=False)


@app.callback()
def loadtest(
    context: typer.Context,
    config: Config = None,
    target: option.Target = None,
    api_key_env: option.ApiKeyEnv = None,
    tenant: option.Tenant = None,
    api: option.Api = "native",
    model: Model = None,
    base_url: BaseUrl = None,
    mix: option.Mix = None,
    shape: option.Shape = "constant",
    users: option.Users = None,
    rate: option.Rate = None,
    spawn_rate: option.SpawnRate = None,
    duration: option.Duration = "",
    drain: option.Drain = None,
    arrivals: option.Arrivals = "poisson",
    threshold: option.Threshold = None,
    workers: option.Workers = 1,
    master: option.Master = False,
    bind: option.Bind = "127.0.0.1:5557",
    worker_of: option.WorkerOf = None,
    seed: option.Seed = 0,
    turns: option.Turns = None,
    think: option.Think = 1.0,
    first_token: option.FirstToken = "200ms",  # noqa: S107
    per_token: option.PerToken = "5ms",  # noqa: S107
    price: option.Price = None,
    max_turns: option.MaxTurns = None,
    max_tokens: option.MaxTokens = None,
    victim: option.Victim = None,
    victim_rate: option.VictimRate = 1.0,
    faults: option.Faults = None,
    replay: option.Replay = None,
    speed: option.Speed = 1.0,
    keep_budgets: option.KeepBudgets = False,
    no_checklist: option.NoChecklist = False,
    web: option.Web = False,
    web_port: option.WebPort = 8089,
    report: option.Report = None,
    baseline: option.Baseline = None,
    max_regression: option.MaxRegression = 5.0,
    force: option.Force = False,
    write: option.Write = False,
    owned: option.Owned = False,
    dry_run: option.DryRun = False,
    form: option.Form = "table",
    as_json: option.AsJson = False,
    quiet: option.Quiet = False,
) -> int | None:
    """Drive the session pool to its capacity: a report, an exit code, and what gives way first.

    Exit codes: 0 passed, 1 a threshold failed, 3 wrong configuration, 11 inconclusive, 130 and 143 interrupted.
    """
    if context.invoked_subcommand is not None:
        return None
    from agentao_gov.commands import _loadtest_options as flags
    from agentao_gov.loadtest.driver import run_worker, split_address
    from agentao_gov.loadtest.options import DEFAULT_MIX, LoadOptions, parse_mix

    flags.check_together(context)
    if worker_of is not None:
        return run_worker(worker_of)
    form = "json" if as_json else form
    flags.one_of("--format", form, option.FORMATS)
    split_address(bind)
    at_target = target is not None
    options = LoadOptions(
        config=config,
        target=target,
        api=flags.one_of("--api", api, ("native", "openai")),
        api_key_env=api_key_env if at_target else None,
        tenant=tenant,
        model_flags=flags.model_flags_of(model, base_url, None if at_target else api_key_env),
        mix=dict(DEFAULT_MIX) if mix is None else parse_mix(mix),
        mix_given=mix is not None,
        shape=flags.one_of("--shape", shape, option.SHAPES),
        users=users,
        rate=flags.positive("--rate", rate),
        spawn_rate=flags.positive("--spawn-rate", spawn_rate),
        duration_s=flags.seconds_of("--duration", duration or ("120s" if shape == "capacity" else "60s")),
        drain_s=None if drain is None else flags.seconds_of("--drain", drain, least=0.0),
        process=flags.one_of("--arrivals", arrivals, ("poisson", "constant")),
        thresholds=tuple(threshold or ()),
        workers=workers,
        bind=bind if master else None,
        seed=seed,
        checklist=not no_checklist,
        web_port=web_port if web else None,
        report_dir=report,
        baseline=baseline,
        max_regression=flags.finite("--max-regression", max_regression) / 100,
        force=force,
        owned=owned,
        keep_budgets=keep_budgets,
        turns_per_session=turns,
        think_scale=flags.finite("--think", think),
        first_token_s=flags.seconds_of("--first-token", first_token, least=0.0),
        per_token_s=flags.seconds_of("--per-token", per_token, least=0.0),
        max_turns=max_turns,
        max_tokens=flags.tokens_of(max_tokens),
        price=flags.price_of(price),
        victim=victim,
        victim_rate=flags.positive("--victim-rate", victim_rate) or 1.0,
        faults=faults,
        replay=replay,
        replay_speed=flags.positive("--speed", speed) or 1.0,
        replay_until_s=flags.seconds_of("--duration", duration) if duration else None,
        write=write,
    )
    return _run(options, form=form, quiet=quiet, dry_run=dry_run)


@app.command("compare")
def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="report.json of the baseline.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="report.json of now.")],
    max_regression: Annotated[float, typer.Option(metavar="PCT", min=0)] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Although plan or machine differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> int:
    """Compare two reports: is B worse than A beyond chance and the allowance?"""
    import json

    from agentao_gov.commands._loadtest_view import print_comparisons
    from agentao_gov.loadtest.compare import compare_reports, read_report

    comparisons, part = compare_reports(
        read_report(before), read_report(after), allowance=max_regression / 100, force=force
    )
    if as_json:
        sys.stdout.write(json.dumps(part) + "\n")
    else:
        print_comparisons(part["comparisons"])
    statuses = {comparison.status for comparison in comparisons}
    return 1 if "fail" in statuses else 11 if "inconclusive" in statuses else 0


def _run(options: LoadOptions, *, form: str, quiet: bool, dry_run: bool) -> int:
    from agentao_gov.commands._loadtest_view import TerminalView, print_dry_run
    from agentao_gov.errors import GovError, StoreError, UsageError
    from agentao_gov.loadtest.render import make_place, write_reports
    from agentao_gov.loadtest.run import LoadTestRun
    from agentao_gov.loadtest.view import Stop
    from agentao_gov.report.gate_terminal import GateScreen

    screen = GateScreen(quiet=quiet)
    stop = Stop()
    test = LoadTestRun(options, TerminalView(screen), stop)
    try:
        test.prepare()
        if dry_run:
            print_dry_run(test.dry_run(), as_json=form == "json")
            return 0
        if options.report_dir is not None:
            # Not after an hour of load.
            make_place(options.report_dir)
        for warning in test.warnings():
            screen.note(warning)
        with stop.on_signals():
            try:
                report = test.run()
            finally:
                screen.close()
    except GovError as error:
        if options.report_dir is not None and not dry_run and not isinstance(error, UsageError | StoreError):
            # What an earlier run left there must not be taken for this one's.
            write_reports(test.refused(error), options.report_dir)
        raise
    _deliver(report, options, form)
    return report.exit_code


def _deliver(report: LoadTestReport, options: LoadOptions, form: str) -> None:
    """Files first, then the terminal: a full pipe must not lose a report."""
    from agentao_gov.commands._loadtest_view import next_command
    from agentao_gov.loadtest.render import gate_report, render, write_reports
    from agentao_gov.report.gate_terminal import print_gate

    if options.report_dir is not None:
        write_reports(report, options.report_dir)
    if options.write:
        _write_capacity(report, options)
    if form == "table":
        print_gate(gate_report(report), sys.stdout, next_command=next_command(report, options))
    else:
        sys.stdout.write(render(report, form))


def _write_capacity(report: LoadTestReport, options: LoadOptions) -> None:
    from agentao_gov.config import find_deployment
    from agentao_gov.config.edit import write_capacity
    from agentao_gov.errors import ConfigError

    if not report.capacity.plan or report.conclusion != "pass":
        sys.stderr.write("No capacity was found, so none was written.\n")
        return
    path = find_deployment(options.config, os.environ)
    if path is None:
        raise ConfigError("There is no agentao-gov.toml to write to.", hint="`agentao-gov init` writes one.")
    write_capacity(path, report.capacity.plan)
    sys.stderr.write(f"[capacity] of {path} holds the capacity now.\n")
