"""Puts measured tables into a benchmark's `.md`: between `<!-- NAME -->` and `<!-- /NAME -->`, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["machine", "refresh", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine(environment: Mapping[str, Any]) -> str:
    """One line on where and when: `environment` has date, cores, machine, python, agentao and load."""
    return (
        f"{environment['date'][:10]}, {environment['cores']} cores ({environment['machine']}), "
        f"Python {environment['python']}, agentao {environment['agentao']}, "
        f"load average {environment['load']:.1f} when it began."
    )


def refresh(file: Path, sections: Mapping[str, str]) -> None:
    """Replaces the sections' text. Raises LookupError for one that the file does not have."""
    text = file.read_text()
    for name, body in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found is None:
            raise LookupError(f"{file.name} has no section {name!r}")
        text = f"{text[: found.start()]}{found[1]}{body}\n{found[2]}{text[found.end() :]}"
    file.write_text(text)
