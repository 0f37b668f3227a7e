"""`agentao-gov budget`: show what is used, grant more for today, verify the journal, export it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from agentao_gov.budget import Balance, Scope, TokenLedger
    from agentao_gov.config import ResolvedDeployment

app = typer.Typer(no_args_is_help=True, help="Token budgets: show, grant, verify, export.")

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Deployment file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


@app.command()
def show(
    config: ConfigOption = None,
    window: Annotated[str | None, typer.Option(help="A day, YYYY-MM-DD, or `all`; today where absent.")] = None,
    as_json: JsonOption = False,
) -> int:
    """What each tenant, user and session used of its budget."""
    from agentao_gov.report import budget as report
    from agentao_gov.report.terminal import console

    _check_window(window)
    deployment = _load(config)
    balances = _balances(deployment, window)
    if window is None:
        _warn_of_clock(balances)
    if as_json:
        record = {
            "schema": report.BUDGET_SCHEMA,
            "store": _place(deployment),
            "balances": [report.balance_record(balance) for balance in balances],
        }
        sys.stdout.write(json.dumps(record) + "\n")
    else:
        report.print_balances(console(sys.stdout), balances, deployment.deployment.budget.warn_at)
    return 0


@app.command()
def grant(
    scope: Annotated[str, typer.Argument(help="tenant:T, user:T/U or session:T/S")],
    tokens: Annotated[str, typer.Argument(help="How many, e.g. 50000 or 50k.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Add to a budget for today's window only."""
    from agentao_gov.budget import limit_of
    from agentao_gov.config import parse_tokens
    from agentao_gov.errors import UsageError
    from agentao_gov.report import budget as report
    from agentao_gov.report.terminal import console

    name = _scope(scope)
    try:
        amount = parse_tokens(tokens)
    except ValueError as error:
        raise UsageError(f"{tokens!r} is no amount of tokens.", hint="Write 50000, 50_000, 50k or 1.5m.") from error
    if amount <= 0:
        raise UsageError("A grant adds tokens: it has to be more than 0.")
    deployment = _load(config)
    _check_tenant(deployment, name)
    with _open(deployment) as ledger:
        balance = ledger.grant(limit_of(deployment, name), amount)
    if as_json:
        sys.stdout.write(json.dumps(report.balance_record(balance)) + "\n")
    else:
        report.print_balances(console(sys.stdout), [balance], deployment.deployment.budget.warn_at)
    return 0


@app.command()
def verify(config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Replay the journal and compare every balance; exit code 9 when anything differs."""
    from dataclasses import asdict

    from agentao_gov.errors import StoreError
    from agentao_gov.report import budget as report
    from agentao_gov.report.terminal import console

    deployment = _load(config)
    result = _verify(deployment)
    if as_json:
        sys.stdout.write(json.dumps({"ok": result.ok, **asdict(result)}) + "\n")
    else:
        report.print_verification(console(sys.stdout), result, _place(deployment))
        if not result.ok:
            raise StoreError(
                f"The journal does not reproduce the ledger: {len(result.problems)} problems.",
                hint="Put a sound copy back; until then daily budgets cannot be relied on.",
            )
    return 0 if result.ok else StoreError.ending.exit_code


@app.command()
def export(
    config: ConfigOption = None,
    what: Annotated[str, typer.Option(help="balances | journal")] = "balances",
    file_format: Annotated[str, typer.Option("--format", help="csv | jsonl")] = "csv",
    window: Annotated[str | None, typer.Option(help="A day, YYYY-MM-DD; all where absent.")] = None,
    output: Annotated[Path | None, typer.Option(help="File; standard output where absent.")] = None,
) -> int:
    """Every balance, or every entry of the journal, as CSV or JSON lines."""
    from agentao_gov.errors import UsageError
    from agentao_gov.report import budget as report

    if what not in ("balances", "journal") or file_format not in ("csv", "jsonl"):
        raise UsageError("--what is `balances` or `journal`, --format is `csv` or `jsonl`.")
    _check_window(window)
    deployment = _load(config)
    if what == "balances":
        rows: Iterator[dict[str, Any]] = (
            report.balance_record(balance) for balance in _balances(deployment, window or "all")
        )
    else:
        rows = _journal(deployment)
    with _output(output) as out:
        if file_format == "csv":
            report.write_csv(out, rows)
        else:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return 0


def _check_window(window: str | None) -> None:
    """A day that no calendar has would be one in which nothing was used."""
    from datetime import date

    from agentao_gov.errors import UsageError

    if window in (None, "all"):
        return
    try:
        known = date.fromisoformat(window).isoformat() == window
    except ValueError:
        known = False
    if not known:
        raise UsageError(f"{window!r} is no day.", hint="Write YYYY-MM-DD, or `all`.")


def _load(config: Path | None) -> ResolvedDeployment:
    from agentao_gov.config import load_deployment
    from agentao_gov.errors import ConfigError

    deployment = load_deployment(config)
    if deployment.deployment.budget.store == "memory":
        raise ConfigError(
            "This deployment keeps its ledger in the memory of each process.",
            hint='Set [budget] store = "sqlite", or ask the service: GET /v1/status.',
        )
    return deployment


@contextmanager
def _open(deployment: ResolvedDeployment) -> Iterator[TokenLedger]:
    from agentao_gov.budget import open_ledger

    ledger = open_ledger(deployment)
    try:
        yield ledger
    finally:
        ledger.close()


def _balances(deployment: ResolvedDeployment, window: str | None) -> list[Balance]:
    """Recorded balances under today's configuration, and the configured tenants that have used nothing yet."""
    from dataclasses import replace

    from agentao_gov.budget import Scope, limit_of

    if _absent(deployment):
        recorded: tuple[Balance, ...] = ()
        fresh: tuple[Balance, ...] = ()
    else:
        tenants = [Scope("tenant", name) for name in deployment.deployment.tenants if name != "default"]
        with _open(deployment) as ledger:
            recorded = ledger.store.all_balances(window)
            fresh = ledger.balances([limit_of(deployment, tenant) for tenant in tenants]) if window is None else ()
    known = {balance.scope for balance in recorded}
    result = []
    for balance in (*recorded, *(b for b in fresh if b.scope not in known)):
        limit = limit_of(deployment, balance.scope).limit
        result.append(replace(balance, limit=None if limit is None else limit + balance.granted))
    order = {"tenant": 0, "user": 1, "session": 2}
    # Today is another day in another time zone: only where days were asked for do they part the list.
    return sorted(result, key=lambda b: (b.window if window else "", order.get(b.scope.kind, 3), b.scope.key))


def _warn_of_clock(balances: list[Balance]) -> None:
    """The ledger never goes back to an earlier day: a clock that was wrong once keeps it in the future."""
    import time

    from agentao_gov.budget.windows import WindowCalendar
    from agentao_gov.report.terminal import warn

    calendar, now_s = WindowCalendar(), time.time()
    ahead = {b.window for b in balances if b.window > calendar.window(b.timezone, now_s).name}
    if ahead:
        warn(
            f"The ledger stands at {max(ahead)}, later than this machine's clock: it saw a later time before. "
            "Budgets of that day hold until the clock reaches it; check the clock, and grant if need be."
        )


def _verify(deployment: ResolvedDeployment) -> Any:
    from agentao_gov.budget import ledger_path, verify_file
    from agentao_gov.errors import StoreError

    if deployment.deployment.budget.store != "sqlite":
        with _open(deployment) as ledger:
            return ledger.store.verify()
    if _absent(deployment):
        raise StoreError(f"There is no ledger at {ledger_path(deployment)}.", hint="Run a turn first, or --config.")
    # Not through the ledger: what is broken may not even open.
    result = verify_file(ledger_path(deployment))
    if result.ok:
        with _open(deployment):
            # Opening compares the file with its mark: a sound but older copy is found here.
            pass
    return result


def _journal(deployment: ResolvedDeployment) -> Iterator[dict[str, Any]]:
    from agentao_gov.budget.journal import decode

    if _absent(deployment):
        return
    names: dict[str, str] = {}
    with _open(deployment) as ledger:
        for number, text, digest in ledger.store.journal():
            entry = decode(text)
            if entry.kind == "line":
                names[entry.id] = entry.note
            fields = entry._asdict()
            named = [names.get(ref, ref) for ref in fields.pop("refs")]
            yield {"number": number, **fields, "lines": named, "hash": digest.hex()}


def _absent(deployment: ResolvedDeployment) -> bool:
    """Whether there is no ledger yet: looking at budgets must not create one."""
    from agentao_gov.budget import ledger_path
    from agentao_gov.errors import StoreError

    if deployment.deployment.budget.store != "sqlite":
        return False
    try:
        return not ledger_path(deployment).exists()
    except OSError as error:
        raise StoreError(
            f"The token ledger {ledger_path(deployment)} cannot be used: {error.strerror}.",
            hint="Make the file and its directory accessible to this user.",
        ) from error


def _place(deployment: ResolvedDeployment) -> str:
    from agentao_gov.budget import ledger_path

    store = deployment.deployment.budget.store
    # A Redis address may carry a password.
    return str(ledger_path(deployment)) if store == "sqlite" else store.partition("://")[0]


def _scope(text: str) -> Scope:
    from agentao_gov.budget import Scope
    from agentao_gov.errors import UsageError

    kind, _, key = text.partition(":")
    tenant, slash, rest = key.partition("/")
    if kind == "tenant" and tenant and not slash:
        return Scope("tenant", key)
    if kind in ("user", "session") and tenant and rest:
        return Scope("user" if kind == "user" else "session", key)
    raise UsageError(f"{text!r} names no budget.", hint="Write tenant:T, user:T/U or session:T/S.")


def _check_tenant(deployment: ResolvedDeployment, scope: Scope) -> None:
    """A grant to a mistyped tenant would help nobody and say nothing."""
    from difflib import get_close_matches

    from agentao_gov.errors import ConfigError
    from agentao_gov.report.terminal import warn

    tenants = deployment.deployment.tenants
    tenant = scope.key.partition("/")[0]
    if "default" not in tenants and tenant not in {*tenants, "local", "default"}:
        raise ConfigError(
            f"There is no tenant {tenant!r}; there are: {', '.join(sorted({*tenants, 'local'}))}.",
            hint="Add [tenants.NAME] or [tenants.default] to the deployment file.",
        )
    if tenants and tenant not in {*tenants, "local"}:
        near = get_close_matches(tenant, tenants, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else "."
        warn(f"Tenant {tenant!r} is not listed: the budget of one that nobody may be is changed{meant}")


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    import os

    if path is None:
        yield sys.stdout
        return
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        yield out
