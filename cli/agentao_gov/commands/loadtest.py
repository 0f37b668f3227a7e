"""`agentao-gov loadtest`: drive the session pool to its capacity, with a gate.

Neither locust nor gevent is imported in this process: the generator is a child of its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentao_gov.commands._options import BaseUrl, Config, Model

if TYPE_CHECKING:
    from agentao_gov.loadtest.document import LoadTestReport
    from agentao_gov.loadtest.options import Options

__all__ = ["app"]

_SHAPES = ("ramp", "steps", "soak", "spike", "constant", "capacity")
_FORMATS = ("table", "json", "junit", "markdown", "github")

app = typer.Typer(add_completion=False, rich_markup_mode=None, invoke_without_command=True, no_args_is_help=False)


@app.callback()
def loadtest(
    context: typer.Context,
    config: Config = None,
    target: Annotated[
        str | None, typer.Option(metavar="URL", help="A running service. Default: your configuration, started here.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Variable that holds the target's (or the model's) key.")
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Load this tenant alone; with --target, whose key it is.")
    ] = None,
    api: Annotated[str, typer.Option(help="native | openai: which interface to load.")] = "native",
    model: Model = None,
    base_url: BaseUrl = None,
    mix: Annotated[
        str | None, typer.Option(metavar="NAME=WEIGHT,...", help="Profiles. Default: qa=8,code=1,research=1.")
    ] = None,
    shape: Annotated[str, typer.Option(help=" | ".join(_SHAPES))] = "constant",
    users: Annotated[
        int | None, typer.Option(min=1, help="Sessions that think between turns; with --rate their number at most.")
    ] = None,
    rate: Annotated[float | None, typer.Option(metavar="TURNS/S", help="Turns a second, on a schedule.")] = None,
    spawn_rate: Annotated[float | None, typer.Option(metavar="N", help="How fast to rise, per second.")] = None,
    duration: Annotated[str, typer.Option(metavar="D", help="Total length: 60s, 5m.")] = "",
    drain: Annotated[str | None, typer.Option(metavar="D", help="How long turns in flight get at the end.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson | constant")] = "poisson",
    threshold: Annotated[
        list[str] | None, typer.Option(metavar="'NAME OP VALUE'", help="Like 'turn_p95<2s'. Repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that send the load.")] = 1,
    master: Annotated[bool, typer.Option("--master", help="Wait for --workers on other machines.")] = False,
    bind: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="Where --master listens.")] = "127.0.0.1:5557",
    worker_of: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Be a worker of the --master there.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of schedule, sessions and answers.")] = 0,
    turns: Annotated[int | None, typer.Option(min=1, help="Turns a session, instead of the task's.")] = None,
    think: Annotated[float, typer.Option(min=0, help="Stretch pauses by this factor.")] = 1.0,
    first_token: Annotated[str, typer.Option(metavar="D", help="The simulated model's first token.")] = "200ms",  # noqa: S107
    per_token: Annotated[str, typer.Option(metavar="D", help="The simulated model's time a token.")] = "5ms",  # noqa: S107
    price: Annotated[str | None, typer.Option(metavar="IN,OUT", help="Per million tokens; gives a cost.")] = None,
    max_turns: Annotated[int | None, typer.Option(min=1, help="Upper bound.")] = None,
    max_tokens: Annotated[str | None, typer.Option(metavar="N", help="Upper bound: 500k, 2m.")] = None,
    victim: Annotated[str | None, typer.Option(metavar="TENANT", help="Measure this tenant alone and beside.")] = None,
    victim_rate: Annotated[float, typer.Option(metavar="TURNS/S")] = 1.0,
    faults: Annotated[Path | None, typer.Option(metavar="FILE", help="A script of faults to play.")] = None,
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help="Recorded turns instead of drawn ones.")] = None,
    speed: Annotated[float, typer.Option(min=0.01, help="Of --replay.")] = 1.0,
    keep_budgets: Annotated[bool, typer.Option("--keep-budgets", help="Leave daily budgets as configured.")] = False,
    no_checklist: Annotated[bool, typer.Option("--no-checklist", help="Leave the checklist out.")] = False,
    web: Annotated[bool, typer.Option("--web", help="Locust's web UI beside.")] = False,
    web_port: Annotated[int, typer.Option(min=1, max=65535)] = 8089,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write JSON, HTML, JUnit and Markdown.")] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="A report.json to compare with.")] = None,
    max_regression: Annotated[float, typer.Option(metavar="PCT", min=0, help="Allowed beyond it.")] = 5.0,
    force: Annotated[bool, typer.Option("--force", help="Compare although plan or machine differ.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the capacity found into the deployment file.")] = False,
    owned: Annotated[bool, typer.Option("--i-own-this-target", help="The target may be loaded.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show schedule, turns, tokens and cost; do nothing.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help=" | ".join(_FORMATS))] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int | None:
    """Drive the session pool to its capacity: a report, an exit code, and what gives way first.

    Exit codes: 0 passed, 1 a threshold failed, 3 wrong configuration, 11 inconclusive, 130 and 143 interrupted.
    """
    if context.invoked_subcommand is not None:
        return None
    from agentao_gov.commands._loadtest_flags import (
        check_together,
        finite,
        model_flags_of,
        one_of,
        positive,
        price_of,
        seconds_of,
        tokens_of,
    )

    check_together(context)
    if worker_of is not None:
        from agentao_gov.loadtest.worker import run_worker

        return run_worker(worker_of)
    from agentao_gov.loadtest.options import DEFAULT_MIX, Options, parse_mix

    form = "json" if as_json else form
    one_of("--format", form, _FORMATS)
    one_of("--shape", shape, _SHAPES)
    one_of("--api", api, ("native", "openai"))
    one_of("--arrivals", arrivals, ("poisson", "constant"))
    options = Options(
        config=config,
        target=target,
        api=api,  # type: ignore[arg-type]
        api_key_env=api_key_env if target is not None else None,
        tenant=tenant,
        model_flags=model_flags_of(model, base_url, None if target is not None else api_key_env),
        mix=dict(DEFAULT_MIX) if mix is None else parse_mix(mix),
        mix_given=mix is not None,
        shape=shape,  # type: ignore[arg-type]
        users=users,
        rate=positive("--rate", rate),
        spawn_rate=positive("--spawn-rate", spawn_rate),
        duration_s=seconds_of("--duration", duration or ("120s" if shape == "capacity" else "60s")),
        drain_s=None if drain is None else seconds_of("--drain", drain, least=0.0),
        process=arrivals,  # type: ignore[arg-type]
        thresholds=tuple(threshold or ()),
        workers=workers,
        bind=bind if master else None,
        seed=seed,
        checklist=not no_checklist,
        web_port=web_port if web else None,
        report_dir=report,
        baseline=baseline,
        max_regression=finite("--max-regression", max_regression) / 100,
        force=force,
        owned=owned,
        keep_budgets=keep_budgets,
        turns_per_session=turns,
        think_scale=finite("--think", think),
        first_token_s=seconds_of("--first-token", first_token, least=0.0),
        per_token_s=seconds_of("--per-token", per_token, least=0.0),
        max_turns=max_turns,
        max_tokens=tokens_of(max_tokens),
        price=price_of(price),
        victim=victim,
        victim_rate=positive("--victim-rate", victim_rate) or 1.0,
        faults=faults,
        replay=replay,
        replay_speed=positive("--speed", speed) or 1.0,
        replay_until_s=seconds_of("--duration", duration) if duration else None,
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


def _run(options: Options, *, form: str, quiet: bool, dry_run: bool) -> int:
    from agentao_gov.commands._loadtest_view import TerminalView, print_dry_run
    from agentao_gov.errors import GovError, UsageError
    from agentao_gov.loadtest.run import LoadTest
    from agentao_gov.loadtest.view import Stop
    from agentao_gov.loadtest.writers import write_reports
    from agentao_gov.report.gate_terminal import GateScreen

    screen = GateScreen(quiet=quiet)
    stop = Stop()
    test = LoadTest(options, TerminalView(screen), stop)
    try:
        test.prepare()
        if dry_run:
            print_dry_run(test.dry_run(), as_json=form == "json")
            return 0
        for warning in test.warnings():
            screen.note(warning)
        with stop.on_signals():
            try:
                report = test.run()
            finally:
                screen.close()
    except GovError as error:
        if options.report_dir is not None and not dry_run and not isinstance(error, UsageError):
            # What an earlier run left there must not be taken for this one's.
            write_reports(test.refused(error), options.report_dir)
        raise
    _deliver(report, options, form)
    return report.exit_code


def _deliver(report: LoadTestReport, options: Options, form: str) -> None:
    """Files first, then the terminal: a full pipe must not lose a report."""
    from agentao_gov.commands._loadtest_view import next_command
    from agentao_gov.loadtest.summary import gate_report
    from agentao_gov.loadtest.writers import render, write_reports
    from agentao_gov.report.gate_terminal import print_gate

    if options.report_dir is not None:
        write_reports(report, options.report_dir)
    if options.write:
        _write_capacity(report, options)
    if form == "table":
        print_gate(gate_report(report), sys.stdout, next_command=next_command(report, options))
    else:
        sys.stdout.write(render(report, form))


def _write_capacity(report: LoadTestReport, options: Options) -> None:
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
