"""Prints effective settings with where each came from, and findings."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import tomli_w
from pydantic import BaseModel

from agentao_gov.config import Finding
from agentao_gov.config.keys import flatten

__all__ = ["findings_json", "judge_findings", "print_findings", "settings_json", "settings_lines"]

_BARE = re.compile(r"^[A-Za-z0-9_-]+$")


def _effective(model: BaseModel, sources: Mapping[str, str]) -> Iterable[tuple[str, Any, str]]:
    for key, value in flatten(model.model_dump(by_alias=True)):
        yield key, _masked(key, value), sources.get(key, "default")


def _masked(key: str, value: Any) -> Any:
    """Values of MCP environments and passwords of stores are nobody's business on a screen."""
    if re.match(r"mcp\.servers\..+\.env\.", key):
        return "***"
    if key == "budget.store" and isinstance(value, str) and "@" in value:
        parts = urlsplit(value)
        return value.replace(parts.netloc, f"***@{parts.netloc.rpartition('@')[2]}")
    return value


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
