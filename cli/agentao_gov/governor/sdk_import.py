"""How the OpenAI SDK is imported: without most of its types, and blind to an `httpx` that is still being imported.

`import openai` imports `openai.types` and its sub-packages, whose `__init__` import a model for everything the API
has: a third of the time from the command line to the first answer. Here these packages look their names up when they
are asked for; every name still is the SDK's own object from the SDK's own module.

Where the SDK is already there, or a package does more than re-export, it is left as it is.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_PACKAGE = "openai.types"


class _OnDemand(importlib.machinery.SourceFileLoader):
    """Executes a package as a table of names, each imported at its first use."""

    def exec_module(self, module: ModuleType) -> None:
        places = _places(self.get_data(self.path))
        if places is None:
            super().exec_module(module)
            return
        # Importing all made these attributes, too: `openai.types.batch.Batch` is in many a program.
        submodules = {submodule.partition(".")[0] for submodule, _ in places.values()}

        def resolve(name: str) -> Any:
            if name not in places and name in submodules:
                return importlib.import_module(f"{module.__name__}.{name}")
            if name not in places:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            submodule, original = places[name]
            value = getattr(importlib.import_module(f"{module.__name__}.{submodule}"), original)
            setattr(module, name, value)
            return value

        vars(module)["__all__"] = sorted(places)
        vars(module)["__getattr__"] = resolve
        vars(module)["__dir__"] = lambda: sorted({*vars(module), *places})


def _places(source: bytes) -> dict[str, tuple[str, str]] | None:
    """Name → submodule and the name there; None where the package does more than import names from its submodules."""
    import ast

    found: dict[str, tuple[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ImportFrom):
            return None
        if node.module == "__future__":
            continue
        if node.level != 1 or node.module is None:
            return None
        found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


class _Finder(importlib.abc.MetaPathFinder):
    """Finds these packages, and gives them the loader above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _PACKAGE and not fullname.startswith(f"{_PACKAGE}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or type(spec.loader) is not importlib.machinery.SourceFileLoader:
            return None  # an archive, or somebody else's loader
        if spec.origin.endswith("__init__.py"):
            spec.loader = _OnDemand(fullname, spec.origin)
        return spec


def load_types_on_demand() -> None:
    """Lets the SDK's packages of types load on demand from now on. Idempotent; costs nothing until it is imported."""
    if "openai" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def hide_half_imported_httpx() -> None:
    """Makes the SDK see `httpx` only once it is whole: until then nobody can hold an object of it. Idempotent.

    The SDK sits on httpx2 and asks `sys.modules` for the older httpx before every request, to accept its objects too.
    The first MCP server, web tool or failed call of a process imports it, which takes 60 ms: every other turn's call
    would end with `partially initialized module 'httpx' has no attribute 'Timeout'` meanwhile (openai 3.54).
    """
    from openai import _httpx2  # here, because `load_types_on_demand` comes before any import of the SDK

    if hasattr(_httpx2, "_loaded_legacy_httpx"):
        _httpx2._loaded_legacy_httpx = _whole_httpx


def _whole_httpx() -> ModuleType | None:
    module = sys.modules.get("httpx")
    if module is None or getattr(module.__spec__, "_initializing", False):
        return None
    return module
