"""Holds the arrows of the house: a floor imports only from the floors below it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import agentao_gov

PACKAGE = Path(agentao_gov.__file__).parent

#: Each floor and the floors it imports from, imports for types included. `test_every_floor_imports_what_the_table_says`
#: keeps the table exact: an arrow that the code does not have is a promise nobody made.
BELOW: dict[str, set[str]] = {
    "config": set(),
    "process": set(),
    "budget": {"config", "process"},
    "governor": {"budget", "config", "process"},
    "worker": {"governor", "budget", "config", "process"},
    "pool": {"governor", "config", "process"},
    "monitor": {"pool", "worker", "governor", "budget", "config", "process"},
    "simulator": {"config"},
    "service": {"monitor", "pool", "governor", "budget", "config", "process"},
    "report": {"governor", "budget", "config"},
    "testrig": {"process"},
    "checklist": {"testrig", "simulator", "report", "governor", "budget", "config", "process"},
    "loadtest": {"testrig", "simulator", "report", "config", "process"},
}
#: Floors from the ground up. An arrow may only point to an earlier one.
ORDER = (
    *("config", "process", "budget", "governor", "worker", "pool", "monitor", "simulator", "service", "report"),
    *("testrig", "checklist", "loadtest"),
)
#: Files at the top of the package that are ground, not a floor.
GROUND = {"endings", "errors", "clock", "resources"}

#: A wheel carries `loadtests/` inside the package, as files to copy; they are Locust's, not a floor's.
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "_shipped"]
MODULES = {
    ".".join(("agentao_gov", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in FILES
}


@functools.cache
def imports(file: Path) -> frozenset[str]:
    """Every module the file imports, at any depth: under TYPE_CHECKING and inside functions, too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(("agentao_gov", *file.parent.relative_to(PACKAGE).parts)) if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
    return frozenset(found)


def arrows_of(floor: str) -> dict[str, list[str]]:
    """Floor or file at the top of the package → which of this floor's files import from it."""
    found: dict[str, list[str]] = {}
    for file in sorted((PACKAGE / floor).rglob("*.py")):
        for module in imports(file):
            parts = module.split(".")
            if parts[0] != "agentao_gov" or len(parts) < 2 or parts[1] in GROUND | {floor}:
                continue
            # Files at the top count, too: they compose the floors, and no floor may know them.
            if (PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file():
                found.setdefault(parts[1], []).append(f"{file.relative_to(PACKAGE)} imports {module}")
    return found


@pytest.mark.parametrize("floor", ORDER)
def test_every_floor_imports_what_the_table_says(floor: str) -> None:
    """An arrow that points upward would make two floors one; an arrow too many in the table would allow one unseen."""
    found = arrows_of(floor)

    assert {there: files for there, files in found.items() if there not in BELOW[floor]} == {}
    assert BELOW[floor] - set(found) == set()


def test_the_table_has_every_floor_and_no_arrow_runs_up() -> None:
    """What imports each other in a ring cannot be understood one after the other."""
    assert set(ORDER) == set(BELOW)
    for floor, below in BELOW.items():
        assert {there for there in below if ORDER.index(there) >= ORDER.index(floor)} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports for types and inside functions count: a circle of knowledge is one however Python is kept from it."""
    known: dict[str, set[str]] = {
        module: {name for name in imports(file) if name in MODULES and name != module}
        for module, file in MODULES.items()
        if file.name != "__init__.py"
    }
    left = {module: names & set(known) for module, names in known.items()}
    while free := {module for module, names in left.items() if not names & set(left)}:
        left = {module: names for module, names in left.items() if module not in free}

    # What is left is in a circle or leads to one; a name in it that nothing else imports is not in it.
    while loose := set(left) - {name for names in left.values() for name in names}:
        left = {module: names for module, names in left.items() if module not in loose}
    assert sorted(left) == []


def test_only_the_command_line_knows_typer_and_only_it_and_the_reports_know_rich() -> None:
    """The library must be usable without a terminal."""
    wrong = []
    for file in FILES:
        floor = file.relative_to(PACKAGE).parts[0]
        roots = {module.split(".")[0] for module in imports(file)}
        if "typer" in roots and floor not in {"commands", "main.py"}:
            wrong.append(f"{file.relative_to(PACKAGE)} imports typer")
        if "rich" in roots and floor not in {"commands", "main.py", "report"}:
            wrong.append(f"{file.relative_to(PACKAGE)} imports rich")

    assert wrong == []


#: What runs inside the load generator's own process, and is imported by `loadtests/` alone.
IN_THE_GENERATOR = {"agentao_gov.loadtest.client", "agentao_gov.loadtest.generator"}


def test_locust_never_shares_a_process_with_agentao() -> None:
    """Locust patches the whole process, and agentao's event loops hang in it: the generator is a child of its own."""
    wrong = []
    for module, file in MODULES.items():
        found = imports(file)
        patching = {"locust", "gevent", "geventhttpclient"} & {name.split(".")[0] for name in found}
        if module not in IN_THE_GENERATOR and (patching or IN_THE_GENERATOR & found):
            wrong.append(module)

    assert wrong == []
