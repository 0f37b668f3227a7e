"""One self-contained HTML page: nothing in it is loaded from elsewhere, and nothing in it runs."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from agentao_gov.report.charts import Chart, svg
from agentao_gov.report.gate import GateReport, printable

__all__ = ["Page", "Section", "html_page"]

_TABLE_ROWS_MAX = 200


@dataclass(frozen=True, slots=True)
class Section:
    """A chart with the table of its points."""

    chart: Chart

    @property
    def columns(self) -> tuple[str, ...]:
        """The x axis, then a column a line."""
        return (self.chart.x_label, *(line.name for line in self.chart.lines))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The points as text; thinned where there are very many."""
        columns = [dict(line.points) for line in self.chart.lines]
        xs = sorted({x for column in columns for x in column})
        step = max(1, -(-len(xs) // _TABLE_ROWS_MAX))
        return [(f"{x:g}", *(f"{c[x]:.5g}" if x in c else "" for c in columns)) for x in xs[::step]]


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows: the gate first, then charts."""

    title: str
    gate: GateReport
    started_at: str
    sections: tuple[Section, ...] = ()


def html_page(page: Page) -> str:
    """The page. Texts are escaped and freed of control characters: tenants and models may have written them."""
    environment = Environment(
        loader=PackageLoader("agentao_gov.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["printable"] = printable
    environment.filters["svg"] = svg
    return environment.get_template("page.html.j2").render(page=page, gate=page.gate)
