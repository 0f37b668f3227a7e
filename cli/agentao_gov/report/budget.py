"""Token budgets as people read them (bars) and as machines do (JSON, CSV)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from agentao_gov.budget import Balance, Verification, usd
from agentao_gov.report.terminal import STYLES, print_table

__all__ = ["BUDGET_SCHEMA", "balance_record", "print_balances", "print_verification", "write_csv"]

BUDGET_SCHEMA = "agentao-gov/budget/1"

_BAR_CELLS = 24


def balance_record(balance: Balance) -> dict[str, Any]:
    """One balance as JSON has it. `cost_usd` covers the priced part only; `unpriced_tokens` is the rest."""
    return {
        "scope": balance.scope.kind,
        "key": balance.scope.key,
        "window": balance.window,
        "timezone": balance.timezone,
        "limit": balance.limit,
        "used": balance.used,
        "reserved": balance.reserved,
        "estimated": balance.estimated,
        "granted": balance.granted,
        "cost_usd": round(balance.cost_pico_usd / 1e12, 12),
        "unpriced_tokens": balance.unpriced,
    }


def print_balances(out: Console, balances: Sequence[Balance], warn_at: Sequence[float]) -> None:
    """One line a scope: a bar on a terminal, tab-separated figures elsewhere."""
    if not balances:
        out.print("Nothing has been used in this window.")
        return
    if not out.file.isatty():
        print_table(
            out,
            ("scope", "window", "used", "limit", "reserved", "estimated", "granted", "cost"),
            (_figures(balance) for balance in balances),
        )
        return
    width = max(len(str(balance.scope)) for balance in balances)
    for balance in balances:
        out.print(_line(balance, width, warn_at))


def _figures(balance: Balance) -> tuple[str, ...]:
    return (
        str(balance.scope),
        f"{balance.window} {balance.timezone}",
        str(balance.used),
        "unlimited" if balance.limit is None else str(balance.limit),
        str(balance.reserved),
        str(balance.estimated),
        str(balance.granted),
        _cost(balance),
    )


def _line(balance: Balance, width: int, warn_at: Sequence[float]) -> Text:
    text = Text(f"{balance.scope!s:<{width}}  ")
    if balance.limit:
        share = balance.used / balance.limit
        style = STYLES["bad"] if share >= 1 else STYLES["warn"] if share >= min(warn_at, default=2) else STYLES["ok"]
        filled = min(_BAR_CELLS, int(share * _BAR_CELLS))
        text.append("█" * filled, style).append("░" * (_BAR_CELLS - filled), STYLES["dim"])
        text.append(f" {share:>4.0%}  {balance.used:,} of {balance.limit:,}")
    else:
        text.append(" " * (_BAR_CELLS + 7) + f"{balance.used:,}, no limit")
    for amount, name in (
        (balance.reserved, "reserved"),
        (balance.estimated, "estimated"),
        (balance.granted, "granted"),
    ):
        if amount:
            text.append(f" · {amount:,} {name}")
    text.append(f" · {_cost(balance)} · {balance.window} {balance.timezone}", STYLES["dim"])
    return text


def _cost(balance: Balance) -> str:
    if not balance.unpriced:
        return usd(balance.cost_pico_usd)
    return f"{usd(balance.cost_pico_usd)} + {balance.unpriced} tokens unpriced"


def print_verification(out: Console, result: Verification, place: str) -> None:
    """What `budget verify` found, problem by problem."""
    for problem in result.problems:
        out.print(Text(problem, STYLES["bad"]))
    if result.ok:
        out.print(
            f"{place}: {result.entries:,} journal entries reproduce {result.balances:,} balances and "
            f"{result.reservations:,} reservations. Head {result.head[:16]}."
        )


def write_csv(out: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Rows with the keys of the first as header; lists as JSON."""
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: json.dumps(v) if isinstance(v, list) else v for name, v in row.items()})
