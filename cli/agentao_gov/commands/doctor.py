"""`agentao-gov doctor`: what this machine and configuration can guarantee."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from agentao_gov.commands._options import ApiKeyEnv, BaseUrl, Config, Json, Model

if TYPE_CHECKING:
    from agentao_gov.checklist.doctor import Examination
    from agentao_gov.config import ModelChoice, ResolvedDeployment


def command(
    config: Config = None,
    model: Model = None,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    as_json: Json = False,
) -> int:
    """What this machine and configuration can guarantee: model, tokenizer, store, process isolation layers.

    Ends with 1 when something that is needed does not work; warnings end with 0.
    """
    from agentao_gov.checklist.doctor import examine
    from agentao_gov.config import ModelFlags, load_deployment

    deployment = load_deployment(config)
    choice = _choose(deployment, ModelFlags(model, base_url, api_key_env))
    lines = []
    for line in examine(deployment, choice):
        lines.append(line)
        if not as_json:
            _print(line)
    failed = any(line.health == "fail" for line in lines)
    if as_json:
        _print_json(lines, failed)
    return 1 if failed else 0


def _choose(deployment: ResolvedDeployment, flags: object) -> ModelChoice | Exception:
    """The model, or why there is none: that is a finding, not the end of the examination."""
    from agentao_gov.config import ModelFlags, resolve_model
    from agentao_gov.errors import ConfigError

    assert isinstance(flags, ModelFlags)
    try:
        return resolve_model(flags, deployment=deployment)
    except ConfigError as error:
        return error


#: Columns of the verdict and of what was looked at.
_HEALTH_CHARS, _TITLE_CHARS = 4, 25
#: A narrower terminal has no room for columns.
_GRID_CHARS_MIN = 60


def _print(line: Examination) -> None:
    from rich.table import Table
    from rich.text import Text

    from agentao_gov.report.terminal import STYLES, console

    style = {"ok": STYLES["ok"], "warn": STYLES["warn"], "fail": STYLES["bad"]}[line.health]
    out = console(sys.stdout)
    remedy = Text.assemble(("→ ", STYLES["dim"]), line.remedy) if line.remedy else None
    if out.file.isatty() and out.width >= _GRID_CHARS_MIN:
        # A grid a line: each is shown as soon as it is known, and long ones wrap within their column.
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=_HEALTH_CHARS)
        grid.add_column(width=_TITLE_CHARS)
        grid.add_column(overflow="fold")
        grid.add_row(Text(line.health, style), Text(line.title, STYLES["strong"]), line.observed)
        if remedy:
            grid.add_row("", "", remedy)
        out.print(grid)
        return
    out.print(f"{line.health:<{_HEALTH_CHARS}}  {line.title:<{_TITLE_CHARS}}  {line.observed}")
    if remedy:
        out.print(Text.assemble(" " * (_HEALTH_CHARS + _TITLE_CHARS + 4), remedy))


def _print_json(lines: list[Examination], failed: bool) -> None:
    from dataclasses import asdict

    document = {
        "schema": "agentao-gov/doctor/1",
        "verdict": "fail" if failed else "pass",
        "checks": [
            {**{k: v for k, v in asdict(line).items() if k != "health"}, "status": line.health} for line in lines
        ],
    }
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
