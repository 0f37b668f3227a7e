"""Holds the error tree: each class a user can meet maps to one row of the table of endings."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import agentao_gov
from agentao_gov import errors
from agentao_gov.endings import ENDINGS, Outcome

#: `contract.md`, "Exit codes".
EXIT_CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 130, 143}


def leaves(root: type[errors.GovError]) -> list[type[errors.GovError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(leaves(child))
    return found


@pytest.mark.parametrize("error", leaves(errors.GovError), ids=lambda e: e.__name__)
def test_each_error_has_a_documented_exit_code_and_an_error_status(error: type[errors.GovError]) -> None:
    """A script must be able to branch on every failure."""
    assert error.ending in ENDINGS.values()
    assert error.ending.exit_code in EXIT_CODES - {0}
    assert 400 <= error.ending.http_status < 600
    assert error.ending.code.replace("_", "").isalnum()


def test_every_class_of_the_house_is_a_row_of_the_table_and_every_row_somebodys() -> None:
    """A row that neither an error nor an outcome has would promise what never happens."""
    for module in pkgutil.walk_packages(agentao_gov.__path__, "agentao_gov."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    used = {error.ending for error in leaves(errors.GovError)} | {outcome.ending for outcome in Outcome}

    assert used == set(ENDINGS.values())


@pytest.mark.parametrize("error", leaves(errors.GovError), ids=lambda e: e.__name__)
def test_each_error_is_drawn_in_the_tree(error: type[errors.GovError]) -> None:
    """The drawing at the top of the module is what a reader trusts."""
    if error.__module__ == errors.__name__:
        assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("outcome", list(Outcome))
def test_each_outcome_maps_to_one_exit_code_and_one_status(outcome: Outcome) -> None:
    """No outcome may fall through to a default."""
    assert outcome.exit_code in EXIT_CODES
    assert 200 <= outcome.http_status < 600
    assert outcome.error_code
    assert outcome.ending.sentence
    assert outcome.ending.words


def test_the_message_carries_the_hint() -> None:
    """What to do next is part of what a terminal shows."""
    error = errors.ConfigError("The file has no [pool].", hint="Run `agentao-gov init`.")

    assert str(error) == "The file has no [pool]. Run `agentao-gov init`."
