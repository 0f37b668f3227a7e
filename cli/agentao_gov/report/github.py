"""Writes a gate's result as GitHub workflow annotations (`::error ...::`), one line a finding."""

from __future__ import annotations

from agentao_gov.report.gate import GateCase, GateReport, clean

__all__ = ["github_annotations"]

_LEVELS = {"fail": "error", "inconclusive": "error", "warn": "warning"}


def github_annotations(report: GateReport) -> str:
    """One annotation for each case that is not green, then one notice with the verdict."""
    lines = [_annotation(_LEVELS[case.status], case) for case in report.cases if case.status in _LEVELS]
    level = "notice" if report.conclusion == "pass" else "error"
    lines.append(f"::{level} title={_property(f'agentao-gov {report.name}')}::{_message(report.headline)}")
    return "\n".join(lines) + "\n"


def _annotation(level: str, case: GateCase) -> str:
    where = [f"title={_property(case.title)}"]
    if case.file:
        where.append(f"file={_property(case.file)}")
        if case.line:
            where.append(f"line={case.line}")
    message = f"expected {case.expected}; observed {case.observed}"
    if case.remedy:
        message += f"\n{case.remedy}"
    return f"::{level} {','.join(where)}::{_message(message)}"


def _message(text: str) -> str:
    # GitHub's own escapes; without them a tenant's name could issue workflow commands.
    return clean(text, one_line=False).replace("%", "%25").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(clean(text)).replace(":", "%3A").replace(",", "%2C")
