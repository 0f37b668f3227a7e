"""Which versions of agentao the governor works with, checked before the first import of it.

The governor replaces private parts of agentao's model client. With another version it would fail somewhere in the
middle of an import, or, worse, leave a limit off.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from agentao_gov.errors import ConfigError

#: The same as in `pyproject.toml`; `.ci/run` runs the governor's tests with the oldest and the newest.
NEEDED = ">=0.5.15,<0.5.18"
_OLDEST, _BELOW = (0, 5, 15), (0, 5, 18)


def version_problem() -> str | None:
    """What is wrong with the installed agentao, on one line; None where it fits."""
    try:
        found = version("agentao")
    except PackageNotFoundError:
        found = "none"
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if _OLDEST <= numbers < _BELOW:
        return None
    return f"agentao-gov needs agentao {NEEDED}; installed is {found}."


def require_agentao() -> None:
    """Raises ConfigError where the installed agentao does not fit."""
    problem = version_problem()
    if problem is not None:
        raise ConfigError(problem, hint=f"pip install 'agentao{NEEDED}'")


class _Gate(importlib.abc.MetaPathFinder):
    """Finds nothing; refuses the import of an agentao that does not fit."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "agentao":
            require_agentao()
        return None


def check_before_import() -> None:
    """Lets the first `import agentao` of this process raise ConfigError where the version does not fit. Idempotent."""
    if not any(isinstance(finder, _Gate) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Gate())
