"""Finds the shipped profiles and load tests, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: Literal["profiles", "loadtests"]) -> Path:
    """The directory of shipped `profiles` or `loadtests`.

    In a wheel they lie inside the package, in a checkout at its top, where users read and change them.
    """
    inside = _PACKAGE / "_shipped" / kind
    return inside if inside.is_dir() else _PACKAGE.parents[1] / kind
