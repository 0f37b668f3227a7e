"""Merges the layers a setting can come from, lowest first, and remembers which one won.

Lowest to highest: shipped default, file (a profile's `extends` below the profile), environment, `--set`, flag.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from agentao_gov.errors import UsageError

# ── keys: which there are, of what type, and which is nearest ─────────────────────────────────────

#: Stands for any name in `known_keys`: a tenant's, a server's, a tool's.
ANY = "*"


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model; tables with free names show as `*`."""
    for name, info in model.model_fields.items():
        yield from _keys_of(info.annotation, prefix + (info.alias or name))


def _keys_of(annotation: Any, key: str) -> Iterator[str]:
    kind = _plain(annotation)
    if get_origin(kind) is dict:
        yield from _keys_of(get_args(kind)[1], f"{key}.{ANY}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        yield key
        yield from known_keys(kind, key + ".")
    else:
        yield key


def type_at(model: type[BaseModel], key: str) -> Any | None:
    """The type of a dotted key, or None where there is no such key."""
    kind: Any = model
    for part in key.split("."):
        if get_origin(kind) is dict:
            kind = _plain(get_args(kind)[1])
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            info = next((f for n, f in kind.model_fields.items() if (f.alias or n) == part), None)
            if info is None:
                return None
            kind = _plain(info.annotation)
        else:
            return None
    return kind


def _plain(annotation: Any) -> Any:
    """The type without `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _plain(next(arg for arg in get_args(annotation) if arg is not type(None)))
    return annotation


def nearest_key(model: type[BaseModel], key: str) -> str | None:
    """The known key that was probably meant: a sibling with a similar name, else the same name elsewhere."""
    parent, _, leaf = key.rpartition(".")
    known = [_with_names_of(known_key, key) for known_key in known_keys(model)]
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    if leaf == "timeout" and "request_timeout" in siblings:
        # What agentao and other programs call a server's limit for one call.
        return siblings["request_timeout"]
    if close := difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6):
        return siblings[close[0]]
    elsewhere = {k.rpartition(".")[2]: k for k in known if ANY not in k}
    if close := difflib.get_close_matches(leaf, elsewhere, n=1, cutoff=0.75):
        return elsewhere[close[0]]
    # A word that is part of a name (`timeout`) or far from all: any sibling whose name holds it.
    return next((k for name, k in siblings.items() if leaf in name or name in leaf), None)


def _with_names_of(known: str, key: str) -> str:
    """Replaces the free names of a known key by those the user wrote in the same places."""
    given = key.split(".")
    return ".".join(given[i] if part == ANY and i < len(given) - 1 else part for i, part in enumerate(known.split(".")))


def flatten(table: dict[str, Any], prefix: str = "", *, empty_tables: bool = False) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; a list is a leaf, an empty table only if asked for."""
    for name, value in table.items():
        if isinstance(value, dict) and (value or not empty_tables):
            yield from flatten(value, f"{prefix}{name}.", empty_tables=empty_tables)
        else:
            yield prefix + name, value


# ── layers: what each place says, and what holds ──────────────────────────────────────────────────

ENV_PREFIX = "AGENTAO_GOV__"
#: Ranks: what is stronger may clamp what is weaker. Files of an `extends` chain take 10, 11, 12 …, shipped ones 1, 2 …
RANK_DEFAULT, RANK_SHIPPED, RANK_FILE, RANK_ENVIRONMENT, RANK_SET, RANK_FLAG = 0, 1, 10, 100, 200, 300


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a command line says about the configuration.

    `flags` maps a dotted key to the flag's name and value, `sets` are the `K=V` of `--set`, in order.
    """

    flags: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    sets: tuple[str, ...] = ()

    @classmethod
    def given(cls, flags: Mapping[str, tuple[str, Any]], sets: Iterable[str] | None = None) -> Overrides:
        """From a command's parameters.

        `flags`: the flag's name and its value by dotted key; one whose value is None was not given. `sets`: the `K=V`
        of `--set`, in order; None: there were none.
        """
        return cls({key: pair for key, pair in flags.items() if pair[1] is not None}, tuple(sets or ()))


@dataclass(frozen=True, slots=True)
class ConfigLayer:
    """Values from one place. `source` is the text shown to people; None: the source is made from the key."""

    values: dict[str, Any]
    source: str
    rank: int
    file: Path | None = None
    text: str = ""


class Layers:
    """Layers in rising order, merged. Tables merge key by key; lists and values replace."""

    def __init__(self, layers: Iterable[ConfigLayer]) -> None:
        self.layers = list(layers)
        self.values: dict[str, Any] = {}
        #: The layer that each leaf's value came from, by dotted key.
        self.origin: dict[str, ConfigLayer] = {}
        for layer in self.layers:
            _merge(self.values, layer.values)
            for key, _ in flatten(layer.values, empty_tables=True):
                self.origin[key] = layer

    def rank(self, key: str) -> int:
        """How strong the layer is that a key's value came from."""
        layer = self.layer_of(key)
        return layer.rank if layer else RANK_DEFAULT

    def layer_of(self, key: str) -> ConfigLayer | None:
        """The layer of a key, or of the table it names."""
        if key in self.origin:
            return self.origin[key]
        inside = [layer for leaf, layer in self.origin.items() if leaf.startswith(key + ".")]
        return max(inside, key=lambda layer: layer.rank) if inside else None

    def source(self, key: str) -> str:
        """Where a key's value came from, as `limits` and `show` print it."""
        layer = self.layer_of(key)
        return layer.source if layer else "default"


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


# ── the environment, `--set` and flags as layers ──────────────────────────────────────────────────


def nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b.c` and a value as nested tables."""
    *path, leaf = key.split(".")
    table: dict[str, Any] = {leaf: value}
    for name in reversed(path):
        table = {name: table}
    return table


def environment_layers(
    environ: Mapping[str, str], model: type[BaseModel], written: Mapping[str, Any]
) -> Iterator[ConfigLayer]:
    """One layer per `AGENTAO_GOV__TABLE__KEY` that belongs to this model; `written` is what the files say."""
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = ".".join(_in_files_case(name[len(ENV_PREFIX) :].split("__"), written))
            value = from_text(environ[name], type_at(model, key))
            yield ConfigLayer(nested(key, value), f"environment {name}", RANK_ENVIRONMENT)


#: Tables whose names belong to other programs, which tell capitals from small letters.
_CASED_TABLES = frozenset({"env", "headers"})


def _in_files_case(parts: list[str], written: Mapping[str, Any]) -> Iterator[str]:
    """A variable's parts as keys: in small letters, but a name that the files have is written as there."""
    table: Any = written
    cased = False
    for part in parts:
        names = table if isinstance(table, Mapping) else {}
        key = next((name for name in names if name.lower() == part.lower()), part if cased else part.lower())
        yield key
        table, cased = names.get(key), key in _CASED_TABLES


def set_layers(sets: Iterable[str], model: type[BaseModel]) -> Iterator[ConfigLayer]:
    """One layer per `--set K=V`. Raises UsageError where there is no `=`."""
    for item in sets:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise UsageError(f"--set {item!r} is not KEY=VALUE.", hint="Write it like --set limits.turn_timeout=30s.")
        yield ConfigLayer(nested(key, from_text(text.strip(), type_at(model, key))), f"--set {key}", RANK_SET)


def flag_layers(flags: Mapping[str, tuple[str, Any]]) -> Iterator[ConfigLayer]:
    """One layer per flag that was given."""
    for key, (flag, value) in flags.items():
        yield ConfigLayer(nested(key, value), f"flag {flag}", RANK_FLAG)


def from_text(text: str, kind: Any) -> Any:
    """A value written on a command line or in a variable, as the key's type wants it."""
    if kind is str:
        return text
    if get_origin(kind) is list and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        # `30s`, `wrap_up`, `in-process`: a bare word is a string.
        return text
