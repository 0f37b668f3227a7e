"""Holds what makes the house easy to take over: few files, one name for one thing, docstrings, tests by module."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentao_gov
from tests.test_architecture import FILES, PACKAGE

TESTS = Path(__file__).parent

#: How many files a package may have. More are more to know before the first change: join what changes together, or
#: say here why a new noun is worth it.
FILES_MAX = {
    "budget": 24,
    "checklist": 24,
    "commands": 26,
    "config": 16,
    "governor": 28,
    "loadtest": 24,
    "monitor": 12,
    "pool": 17,
    "process": 22,
    "report": 10,
    "service": 22,
    "simulator": 20,
    "testrig": 5,
    "worker": 12,
}
#: Class names that stand in two packages, each an ordinary word of both. No other may join them.
NAMES_TWICE = {"Shutdown"}
#: Tests of no single module, and what they tell.
SCENARIOS = {
    "checklist/test_command.py": "`agentao-gov checklist`: output, formats, exit codes",
    "commands/test_asking.py": "what a person is shown before a tool may run",
    "commands/test_files.py": "init, profile, config and tenant: what they write, show and judge",
    "commands/test_main.py": "the command line as a whole: help, usage errors, exit codes",
    "commands/test_signals.py": "Ctrl-C and SIGTERM on a real terminal",
    "loadtest/test_command.py": "`agentao-gov loadtest`: usage, refusals, dry runs",
    "loadtest/test_plain_locust.py": "`locust -f loadtests/locustfile.py` by itself",
}


@pytest.mark.parametrize("package", FILES_MAX)
def test_a_package_has_no_more_files_than_its_nouns(package: str) -> None:
    """One noun a file: a package that grows by fragments cannot be taken over."""
    count = sum(file.relative_to(PACKAGE).parts[0] == package for file in FILES)

    assert count <= FILES_MAX[package]


def test_every_package_has_a_ceiling() -> None:
    """A new package is a new word for everybody: it is written down here."""
    packages = {file.relative_to(PACKAGE).parts[0] for file in FILES if len(file.relative_to(PACKAGE).parts) > 1}

    assert packages == set(FILES_MAX)


def test_a_class_name_means_one_thing() -> None:
    """Who greps for a class finds the one that is meant."""
    names = Counter(
        node.name
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )

    assert {name for name, count in names.items() if count > 1} <= NAMES_TWICE


def public_callables() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Name, callable and docstring of what `agentao_gov` exports: functions, constructors, methods of ours.

    A constructor's parameters stand in its class's docstring or in its own. Fields of data classes, models and
    enumerations are not parameters: a comment beside each says what it holds.
    """
    for name in agentao_gov.__all__:
        exported = getattr(agentao_gov, name)
        if not inspect.isclass(exported):
            yield name, exported, inspect.getdoc(exported) or ""
            continue
        protocol = getattr(exported, "_is_protocol", False)
        if "__init__" in vars(exported) and not (protocol or hasattr(exported, "__dataclass_fields__")):
            made = exported.__init__
            yield name, made, f"{inspect.getdoc(exported)} {made.__doc__}"
        for method_name, method in inspect.getmembers(exported, inspect.isroutine):
            if not method_name.startswith("_") and (getattr(method, "__module__", None) or "").startswith(
                "agentao_gov"
            ):
                yield f"{name}.{method_name}", method, inspect.getdoc(method) or ""


PUBLIC = {name: (called, text) for name, called, text in public_callables()}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_docstring_names_every_parameter(name: str) -> None:
    """In backticks, so that a reader finds it; "see there" is no docstring."""
    called, text = PUBLIC[name]
    parameters = [each for each in inspect.signature(called).parameters if each not in {"self", "cls"}]

    assert [each for each in parameters if not re.search(rf"`{each}[`=]", text)] == []
    assert text.strip()
    assert not text.startswith("See ")


CONTRIBUTING = (TESTS.parent / "CONTRIBUTING.md").read_text("utf-8")
RULES = [
    (file, name)
    for file, names in re.findall(r"`(\w+/\w+\.py|\w+\.py)` ((?:`\w+`(?:, )?)+)", CONTRIBUTING)
    for name in re.findall(r"\w+", names)
]


@pytest.mark.parametrize(("file", "name"), RULES)
def test_a_rule_stands_where_contributing_says(file: str, name: str) -> None:
    """Its table is how a stranger finds a rule in half a minute."""
    source = (PACKAGE / file).read_text("utf-8")

    assert re.search(rf"^\s*(def|class) {name}\b|^{name}\b.*=", source, re.MULTILINE)


def test_the_rules_are_listed() -> None:
    """The twelve that everybody asks for."""
    assert len(RULES) >= 12


def test_a_test_is_found_from_its_module() -> None:
    """`tests/PACKAGE/test_MODULE*.py` tries `PACKAGE/MODULE.py`; what tries several modules is a listed scenario."""
    modules: dict[str, set[str]] = {}
    for file in FILES:
        package, *rest = file.relative_to(PACKAGE).with_suffix("").parts
        modules.setdefault(package, set()).update(part for part in rest if part != "__init__")
    elsewhere = {
        str(file.relative_to(TESTS))
        for package, names in modules.items()
        for file in sorted((TESTS / package).glob("test_*.py"))
        if not any(re.fullmatch(rf"test_{name}(_.*)?", file.stem) for name in names)
    }

    assert elsewhere == set(SCENARIOS)


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", "Makefile", "README.md"])
def test_a_test_that_is_named_is_there(file: str) -> None:
    """A command that names a test which was moved runs nothing, or less than it says."""
    text = (TESTS.parent / file).read_text("utf-8")

    assert [name for name in re.findall(r"tests/[\w/]+\.py", text) if not (TESTS.parent / name).is_file()] == []
