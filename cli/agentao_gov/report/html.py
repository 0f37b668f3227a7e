"""One self-contained HTML page: nothing in it is loaded from elsewhere, and nothing in it runs."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from agentao_gov.report.charts import Chart, key, svg
from agentao_gov.report.gate import GateReport, clean

__all__ = ["Page", "Section", "Tile", "html_page"]

_TABLE_ROWS_MAX = 200


#: A word for each status beside its colour: a red and a green word look the same to some readers.
_SIGNS = {"pass": "✓", "fail": "✗", "warn": "!", "skip": "–", "inconclusive": "?", "interrupted": "?"}


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure that a reader looks for first."""

    name: str
    value: str
    detail: str = ""


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
        return [(self._name(x), *(_cell(c.get(x)) for c in columns)) for x in xs[::step]]

    def _name(self, x: float) -> str:
        return self.chart.x_names[int(x)] if self.chart.x_names else f"{x:g}"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows: the gate first, then charts."""

    title: str
    gate: GateReport
    started_at: str
    tiles: tuple[Tile, ...] = ()
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
    environment.filters["clean"] = clean
    environment.filters["svg"] = svg
    environment.filters["key"] = key
    environment.filters["sign"] = _SIGNS.__getitem__
    return environment.get_template("page.html.j2").render(page=page, gate=page.gate)
