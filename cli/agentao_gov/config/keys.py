"""Walks the configuration models by dotted TOML key: which keys exist, of what type, and which is nearest."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["flatten", "known_keys", "nearest_key", "type_at"]

#: Stands for any name in `known_keys`: a tenant's, a server's, a tool's.
ANY = "*"


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model; tables with free names show as `*`."""
    for name, field in model.model_fields.items():
        yield from _keys_of(field.annotation, prefix + (field.alias or name))


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
            field = next((f for n, f in kind.model_fields.items() if (f.alias or n) == part), None)
            if field is None:
                return None
            kind = _plain(field.annotation)
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
