"""`agentao-gov checklist`: prove by behaviour that every limit of a configuration refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentao_gov.commands._options import ApiKeyEnv, Config, Sets

if TYPE_CHECKING:
    from agentao_gov.checklist.items import Item
    from agentao_gov.checklist.report import ChecklistReport

__all__ = ["command"]

_FORMATS = ("table", "json", "junit", "markdown", "github")


def command(
    config: Config = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", metavar="NAME|PATH", help="Look at this profile only. Default: all, probe qa."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="URL", help="A running service instead of your configuration, started here.")
    ] = None,
    api_key_env: ApiKeyEnv = None,
    only: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this item. Repeatable.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="ID", help="All but this item. Repeatable.")] = None,
    form: Annotated[str, typer.Option("--format", help=" | ".join(_FORMATS))] = "table",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there; the table stays.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A warning fails, too.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the items and how each is tried; do nothing.")] = False,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Show a JSON report that was written before.")
    ] = None,
    owned: Annotated[bool, typer.Option("--i-own-this-target", help="The target may be probed.")] = False,
    sets: Sets = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int:
    """Prove that every limit of a configuration refuses: starts it as a real service and tries to break each limit.

    Exit codes: 0 all items hold, 1 an item failed, 3 wrong configuration, 11 nothing was tried.
    """
    from agentao_gov.checklist.items import select
    from agentao_gov.errors import UsageError

    form = "json" if as_json else form
    if form not in _FORMATS:
        raise UsageError(f"--format {form!r} is none of {', '.join(_FORMATS)}.")
    chosen = select(_split(only), _split(skip))
    if list_:
        return _list(form)
    _check_output(output)
    if from_ is not None:
        report = _read(from_)
        _write(report, form, output)
        return report.exit_code
    walked = _walk(
        config,
        profile,
        target,
        api_key_env,
        tuple(sets or ()),
        _Manner(chosen, strict=strict, owned=owned, quiet=quiet),
    )
    _write(walked, form, output)
    return walked.exit_code


@dataclass(frozen=True, slots=True)
class _Manner:
    """How to walk, whatever is walked."""

    chosen: tuple[tuple[Item, bool], ...]
    strict: bool
    owned: bool
    quiet: bool


def _walk(
    config: Path | None,
    profile: str | None,
    target: str | None,
    key_variable: str | None,
    sets: tuple[str, ...],
    manner: _Manner,
) -> ChecklistReport:
    from agentao_gov.checklist.offer import config_name, gather
    from agentao_gov.checklist.runner import walk
    from agentao_gov.commands._checklist_view import Progress
    from agentao_gov.config import Overrides, load_deployment

    overrides = Overrides(sets=sets)
    deployment = load_deployment(config, overrides=overrides)
    facts, probed = gather(deployment, profile, overrides)
    name, screen = config_name(deployment), Progress(quiet=manner.quiet)
    try:
        if target is None:
            return walk(facts, probed, manner.chosen, config=name, strict=manner.strict, listener=screen)
        from agentao_gov.checklist.target import walk_target

        return walk_target(
            target,
            facts,
            probed,
            manner.chosen,
            key_variable=key_variable,
            owned=manner.owned,
            strict=manner.strict,
            config=name,
            listener=screen,
        )
    finally:
        screen.close()


def _split(ids: list[str] | None) -> tuple[str, ...]:
    """Ids of a repeated option; `a,b` is two."""
    return tuple(part.strip() for word in ids or () for part in word.split(",") if part.strip())


def _read(path: Path) -> ChecklistReport:
    """A report of an earlier walk, so that a CI can have every format of one."""
    from agentao_gov.checklist.report import ChecklistReport
    from agentao_gov.errors import UsageError

    try:
        return ChecklistReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(
            f"--from {str(path)!r} is no checklist report: {said}.", hint="Write one with --format json --output FILE."
        ) from None


def _check_output(output: Path | None) -> None:
    """A minute's work must not be lost to a directory that is not there."""
    from agentao_gov.errors import UsageError

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UsageError(f"--output {str(output)!r} cannot be written.", hint="Name a file in a directory that exists.")


def _list(form: str) -> int:
    import json

    from agentao_gov.checklist.items import ITEMS

    if form == "json":
        rows = [
            {"id": item.id, "number": item.number, "title": item.title, "breaks_it_by": item.breaks_it_by}
            for item in ITEMS
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    from agentao_gov.report.terminal import console, print_table

    rows_shown = [(str(item.number), item.id, item.title, item.breaks_it_by) for item in ITEMS]
    print_table(console(sys.stdout), ("", "id", "item", "the probe tries to break it by"), rows_shown)
    return 0


def _write(report: ChecklistReport, form: str, output: Path | None) -> None:
    from agentao_gov.commands._checklist_view import print_checklist, rendered

    if output is not None:
        _write_file(output, rendered(report, "markdown" if form == "table" and output.suffix == ".md" else form))
        form = "table"
    if form == "table":
        print_checklist(report, sys.stdout)
    else:
        sys.stdout.write(rendered(report, form))


def _write_file(path: Path, text: str) -> None:
    """Whole or not at all: a half-written report must not reach a CI's parser."""
    import os
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)
