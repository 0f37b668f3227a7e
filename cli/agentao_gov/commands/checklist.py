"""`agentao-gov checklist`: prove by behaviour that every limit of a configuration refuses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentao_gov.commands._options import ApiKeyEnv, Config, Sets, Strict

if TYPE_CHECKING:
    from agentao_gov.checklist.items import Item
    from agentao_gov.checklist.report import ChecklistReport

_FORMATS = ("table", "json", "junit", "markdown", "github")
#: What a file's name says about the format where nobody else does.
_SUFFIXES = {".json": "json", ".xml": "junit", ".md": "markdown"}


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
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"{' | '.join(_FORMATS)}. Default: by --output's suffix, else table."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report there; the table stays.")
    ] = None,
    strict: Strict = False,
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
    from agentao_gov.commands._show import check_output

    form = _format(form, output, as_json=as_json)
    chosen = select(_split(only), _split(skip))
    if list_:
        return _list(form, chosen)
    check_output(output)
    if from_ is not None:
        _alone("--from", config=config, profile=profile, target=target, only=only, skip=skip, set=sets)
        report = _read(from_, strict=strict)
    else:
        manner = _Manner(chosen, strict=strict, owned=owned, quiet=quiet)
        report = _walk(config, profile, target, api_key_env, tuple(sets or ()), manner)
    _write(report, form, output)
    return report.exit_code


def _format(form: str | None, output: Path | None, *, as_json: bool) -> str:
    from agentao_gov.errors import UsageError

    if form is not None and form not in _FORMATS:
        raise UsageError(f"--format {form!r} is none of {', '.join(_FORMATS)}.")
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} contradict each other.", hint="Give one of them.")
    if as_json:
        return "json"
    return form or _SUFFIXES.get(output.suffix.lower() if output else "", "table")


def _alone(option: str, **others: object) -> None:
    """Options that would be ignored are a mistake, not a wish."""
    from agentao_gov.errors import UsageError

    given = [f"--{name}" for name, value in others.items() if value]
    if given:
        raise UsageError(f"{option} shows what was written before; {', '.join(given)} cannot change it.")


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
    from agentao_gov.checklist.facts import config_name, gather
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


def _read(path: Path, *, strict: bool) -> ChecklistReport:
    """A report of an earlier walk, so that a CI can have every format of one."""
    from agentao_gov.checklist.report import ChecklistReport, judge
    from agentao_gov.errors import UsageError

    hint = "Write one with --format json --output FILE."
    try:
        report = ChecklistReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--from {str(path)!r} cannot be read: {error.strerror}.", hint=hint) from None
    except ValueError:
        raise UsageError(f"--from {str(path)!r} is no checklist report in JSON.", hint=hint) from None
    strict = strict or report.strict
    return report.model_copy(update={"strict": strict, "verdict": judge(report.items, strict=strict)})


def _list(form: str, chosen: tuple[tuple[Item, bool], ...]) -> int:
    import json

    items = [item for item, wanted in chosen if wanted]
    if form == "json":
        rows = [
            {"id": item.id, "number": item.number, "title": item.title, "breaks_it_by": item.breaks_it_by}
            for item in items
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    from agentao_gov.report.terminal import console, print_table

    rows_shown = [(str(item.number), item.id, item.title, item.breaks_it_by) for item in items]
    print_table(console(sys.stdout), ("", "id", "item", "the probe tries to break it by"), rows_shown)
    return 0


def _write(report: ChecklistReport, form: str, output: Path | None) -> None:
    from agentao_gov.commands._checklist_view import print_checklist, rendered
    from agentao_gov.commands._show import write_output

    if output is not None:
        # Unlike an answer it holds no secret, and the next step of a CI may be another user.
        write_output(output, rendered(report, form), new_mode=0o644)
        form = "table"
    if form == "table":
        print_checklist(report, sys.stdout)
    else:
        sys.stdout.write(rendered(report, form))
