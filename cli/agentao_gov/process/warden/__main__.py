"""Runs the warden as a program of its own, without the package around it: `python -I -S` finds only this directory."""

from __future__ import annotations

import os
import sys

# At the end of the path: none of the modules beside this package may stand in for one of the standard library's.
sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from warden.program import main  # type: ignore[import-not-found]

main()
