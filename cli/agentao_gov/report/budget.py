"""Token budgets as people read them (bars) and as machines do (JSON, CSV)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from agentao_gov.budget import Balance, Verification, usd
from agentao_gov.report.terminal import STYLES, bar, print_table

BUDGET_SCHEMA = "agentao-gov/budget/1"

#: Scopes of one kind that a terminal is shown; a service has thousands of sessions a day.
_SHOWN_MAX = 20
#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


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
    """Writes one line a scope to `out`: a bar on a terminal, figures elsewhere.

    `warn_at`: a bar is yellow from the lowest of these shares of its limit on.
    """
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
    days = dict.fromkeys(f"{balance.window} {balance.timezone}" for balance in balances)
    if len(days) == 1:
        out.print(next(iter(days)), style=STYLES["dim"])
    chosen, left = _most_used(balances)
    width = max(len(str(balance.scope)) for balance in chosen)
    for balance in chosen:
        out.print(_line(balance, width, warn_at, dated=len(days) > 1))
    for kind, count in left.items():
        out.print(f"… {count:,} {kind}s more, each with less; --json has them all", style=STYLES["dim"])


def _most_used(balances: Sequence[Balance]) -> tuple[list[Balance], dict[str, int]]:
    """What a terminal is shown, in the given order, and how many more there are of each kind of scope."""
    chosen: set[int] = set()
    left: dict[str, int] = {}
    for kind in dict.fromkeys(balance.scope.kind for balance in balances):
        places = [place for place, balance in enumerate(balances) if balance.scope.kind == kind]
        places.sort(key=lambda place: -balances[place].used)
        chosen |= set(places[:_SHOWN_MAX])
        if len(places) > _SHOWN_MAX:
            left[kind] = len(places) - _SHOWN_MAX
    return [balance for place, balance in enumerate(balances) if place in chosen], left


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


def _line(balance: Balance, width: int, warn_at: Sequence[float], *, dated: bool) -> Text:
    share = f"{balance.used / balance.limit:>4.0%}" if balance.limit else "    "
    of = f"of {balance.limit:,}" if balance.limit is not None else "used, no limit"
    shown = bar(balance.used, balance.limit, high=min(warn_at, default=1.0))
    text = Text.assemble(f"{balance.scope!s:<{width}}  ", shown, f" {share}  {balance.used:,} {of}")
    for amount, name in (
        (balance.reserved, "reserved"),
        (balance.estimated, "estimated"),
        (balance.granted, "granted"),
    ):
        if amount:
            text.append(f" · {amount:,} {name}")
    if balance.cost_pico_usd or balance.unpriced:
        text.append(f" · {_cost(balance)}", STYLES["dim"])
    if dated:
        text.append(f" · {balance.window} {balance.timezone}", STYLES["dim"])
    return text


def _cost(balance: Balance) -> str:
    if not balance.unpriced:
        return usd(balance.cost_pico_usd)
    return f"{usd(balance.cost_pico_usd)} + {balance.unpriced:,} tokens unpriced"


def print_verification(out: Console, result: Verification, place: str) -> None:
    """Writes what `budget verify` found in the ledger at `place` to `out`, problem by problem."""
    for problem in result.problems:
        out.print(Text(problem, STYLES["bad"]))
    if result.ok:
        out.print(
            f"{place}: {result.entries:,} journal entries reproduce {result.balances:,} balances and "
            f"{result.reservations:,} reservations. Head {result.head[:16]}."
        )


def write_csv(out: TextIO, rows: Iterable[dict[str, Any]]) -> None:
    """Rows with the keys of the first as header; lists as JSON. No name is a formula: such a one gets an apostrophe."""
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, fieldnames=list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
