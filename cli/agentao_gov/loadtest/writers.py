"""The report in every format, from one document."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agentao_gov.errors import StoreError
from agentao_gov.loadtest.document import LoadTestReport
from agentao_gov.loadtest.page import page
from agentao_gov.loadtest.summary import gate_report
from agentao_gov.report.github import github_annotations
from agentao_gov.report.html import html_page
from agentao_gov.report.junit import junit_xml
from agentao_gov.report.markdown import markdown

__all__ = ["make_place", "render", "write_reports"]


def render(report: LoadTestReport, form: str) -> str:
    """The report as `json`, `junit`, `markdown` or `github`."""
    if form == "json":
        return report.to_json() + "\n"
    gate = gate_report(report)
    return {"junit": junit_xml, "markdown": markdown, "github": github_annotations}[form](gate)


def make_place(folder: Path) -> None:
    """Makes the directory where it is missing. Raises StoreError where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(f"The reports cannot be written to {folder}: {error.strerror}.") from None


def write_reports(report: LoadTestReport, folder: Path) -> list[Path]:
    """Writes `report.json`, `report.html`, `junit.xml` and `summary.md`. Raises StoreError where it cannot."""
    files = {
        "report.json": render(report, "json"),
        "junit.xml": render(report, "junit"),
        "summary.md": render(report, "markdown"),
        "report.html": html_page(page(report)),
    }
    make_place(folder)
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The reports cannot be written to {folder}: {error.strerror}.") from None
    return [folder / name for name in files]
