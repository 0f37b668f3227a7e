"""Prints effective settings with where each came from, and findings."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel

from agentao_gov.config import Finding
from agentao_gov.config.edit import write_whole
from agentao_gov.config.layers import flatten
from agentao_gov.config.mcp import shown_value
from agentao_gov.config.model import shown_url
from agentao_gov.errors import UsageError

_BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def _effective(model: BaseModel, sources: Mapping[str, str]) -> Iterable[tuple[str, Any, str]]:
    for key, value in flatten(model.model_dump(by_alias=True)):
        yield key, _masked(key, value), sources.get(key, "default")


def _masked(key: str, value: Any) -> Any:
    """Secrets of MCP servers and passwords in addresses are nobody's business on a screen."""
    # A server's name may have dots: whatever may be such a field is taken for one.
    if server := re.match(r"mcp\.servers\..+?\.(args|url|env\..+|headers\..+)$", key):
        return shown_value(server[1], value)
    if key.startswith("model.headers."):
        return "***"
    return shown_url(value) if key in {"budget.store", "model.base_url"} and isinstance(value, str) else value


def settings_lines(model: BaseModel, sources: Mapping[str, str]) -> list[str]:
    """TOML lines with the source as a comment, `limits.turn_timeout = "90s"  # profile qa`."""
    pairs = []
    for key, value, source in _effective(model, sources):
        dotted = ".".join(part if _BARE.match(part) else json.dumps(part) for part in key.split("."))
        # An absent limit has no value in TOML; the line says so and stays a comment.
        left = f"# {dotted} is not set" if value is None else f"{dotted} = {_toml_value(value)}"
        pairs.append((left, source))
    # A terminal of 80 columns has room for the source of most lines behind it.
    width = min(46, max((len(left) for left, _ in pairs), default=0))
    return [f"{left:<{width}}  # {source}" for left, source in pairs]


def _toml_value(value: Any) -> str:
    text = tomli_w.dumps({"v": value}).strip().removeprefix("v = ")
    return re.sub(r",?\n\s*", lambda m: "" if m[0].startswith("\n") else ", ", text).replace(", ]", "]")


def settings_json(model: BaseModel, sources: Mapping[str, str]) -> dict[str, Any]:
    """`{"limits.turn_timeout": {"value": "90s", "source": "profile qa"}}`."""
    return {key: {"value": value, "source": source} for key, value, source in _effective(model, sources)}


def findings_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Findings as records."""
    return [
        {
            "level": finding.level,
            "key": finding.key,
            "message": finding.message,
            "file": str(finding.file) if finding.file else None,
            "line": finding.line,
        }
        for finding in findings
    ]


def print_findings(findings: Iterable[Finding]) -> None:
    """One line each on standard error: `qa.toml:12: warning: limits.max_iterations: ...`."""
    for finding in findings:
        place = f"{finding.place}: " if finding.place else ""
        source = f" ({finding.source})" if finding.source else ""
        sys.stderr.write(f"{place}{finding.level}: {finding.key}: {finding.message}{source}\n")


def judge_findings(findings: Iterable[Finding], *, strict: bool, as_json: bool) -> int:
    """Shows what a check found, as lines or as one object; returns the exit code: 3 where something fails."""
    found = list(findings)
    failed = any(finding.level == "error" or strict for finding in found)
    if as_json:
        record = {"verdict": "fail" if failed else "pass", "findings": findings_json(found)}
        sys.stdout.write(json.dumps(record) + "\n")
    else:
        print_findings(found)
        sys.stdout.write(f"{_summary(found)}\n")
    return 3 if failed else 0


def _summary(findings: Iterable[Finding]) -> str:
    """`2 errors, 1 warning`."""
    levels = [finding.level for finding in findings]
    errors, warnings = levels.count("error"), levels.count("warning")
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


# ── `--output FILE`: looked at before anything is paid for, written whole or not at all ───────────


def check_output(path: Path | None) -> None:
    """Raises UsageError for a file that cannot be written: a minute's work must not be lost to a typing error."""
    if path is None:
        return
    # A file is replaced as a whole, which takes its directory; a device or a pipe is written to.
    special = _is_special(path)
    place = path if special else path.resolve().parent
    if path.is_dir() or not (special or place.is_dir()) or not os.access(place, os.W_OK):
        raise UsageError(
            f"The output {str(path)!r} cannot be written.",
            hint="Name a file in a directory that exists and can be written.",
        )


def write_output(path: Path, text: str, *, new_mode: int = 0o600) -> None:
    """Replaces or makes the file; writes to a device or pipe, which a replacement would end. Raises OSError."""
    if _is_special(path):
        path.write_text(text, encoding="utf-8")
    else:
        write_whole(path.resolve(), text, new_mode=new_mode)


def _is_special(path: Path) -> bool:
    """Whether it is /dev/stderr, a named pipe or the like: of the path as given, for a pipe's link leads to no name."""
    return path.exists() and not path.is_file()
