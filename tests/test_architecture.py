"""Holds the arrows of the house: a floor imports only from the floors below it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import agentao_gov

PACKAGE = Path(agentao_gov.__file__).parent

#: Each floor and the floors it may import from; everything may import errors, clock and resources.
BELOW: dict[str, set[str]] = {
    "config": set(),
    "budget": {"config"},
    "process": {"config"},
    "governor": {"budget", "config", "process"},
    "worker": {"governor", "budget", "config", "process"},
    "pool": {"worker", "governor", "budget", "config", "process"},
    "monitor": {"pool", "governor", "budget", "config", "process"},
    "simulator": {"config", "process"},
    "service": {"monitor", "pool", "governor", "budget", "config", "process"},
    "report": {"governor", "budget", "config", "pool", "monitor"},
    "checklist": {"service", "simulator", "report", "monitor", "pool", "governor", "budget", "config", "process"},
    "loadtest": {"service", "simulator", "report", "monitor", "pool", "governor", "budget", "config", "process"},
}
#: Files at the top of the package that are ground, not a floor.
GROUND = {"errors", "clock", "resources"}


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """Every module the file imports, at any depth, except under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(found)


def test_every_floor_imports_only_from_below() -> None:
    """An arrow that points upward would make two floors one."""
    wrong = []
    for floor, below in BELOW.items():
        for file in sorted((PACKAGE / floor).rglob("*.py")):
            for module in imports(file):
                parts = module.split(".")
                if parts[0] != "agentao_gov" or len(parts) < 2:
                    continue
                # Files at the top count, too: they compose the floors, and no floor may know them.
                there = (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file()
                if there and parts[1] not in below | GROUND | {floor}:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {module}")

    assert wrong == []


def test_only_the_command_line_knows_typer_and_only_it_and_the_reports_know_rich() -> None:
    """The library must be usable without a terminal."""
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        floor = file.relative_to(PACKAGE).parts[0]
        roots = {module.split(".")[0] for module in imports(file)}
        if "typer" in roots and floor not in {"commands", "main.py"}:
            wrong.append(f"{file.relative_to(PACKAGE)} imports typer")
        if "rich" in roots and floor not in {"commands", "main.py", "report"}:
            wrong.append(f"{file.relative_to(PACKAGE)} imports rich")

    assert wrong == []


#: What runs inside the load generator's own process, and is imported by `loadtests/` alone.
IN_THE_GENERATOR = {"agentao_gov.loadtest.client", "agentao_gov.loadtest.conductor"}


def test_locust_never_shares_a_process_with_agentao() -> None:
    """Locust patches the whole process, and agentao's event loops hang in it: the generator is a child of its own."""
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(("agentao_gov", *file.relative_to(PACKAGE).with_suffix("").parts))
        found = imports(file)
        if module in IN_THE_GENERATOR:
            continue
        if {"locust", "gevent", "geventhttpclient"} & {
            name.split(".")[0] for name in found
        } or IN_THE_GENERATOR & found:
            wrong.append(module)

    assert wrong == []
