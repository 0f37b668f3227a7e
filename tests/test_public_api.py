"""Holds the public surface: everything promised can be imported, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys

import agentao_gov


def test_everything_in_all_can_be_imported_and_all_is_sorted() -> None:
    """A name in `__all__` that does not exist breaks `from agentao_gov import *`."""
    missing = [name for name in agentao_gov.__all__ if not hasattr(agentao_gov, name)]

    assert missing == []
    assert list(agentao_gov.__all__) == sorted(agentao_gov.__all__)


def test_importing_the_package_loads_neither_agentao_nor_the_sdk() -> None:
    """`--help` has to be instant, and the runtime takes a second to import."""
    code = (
        "import sys, agentao_gov; from agentao_gov import GovError; "
        "print([m for m in ('agentao', 'openai', 'typer', 'rich', 'locust') if m in sys.modules])"
    )

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert shown == "[]"
