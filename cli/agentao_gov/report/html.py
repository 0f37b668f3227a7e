"""One self-contained HTML page: nothing in it is loaded from elsewhere, and nothing in it runs.

Charts are inline SVG, drawn by hand: a few kilobytes each, readable in print and in the dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from agentao_gov.report.gate import GateReport, clean

_WIDTH, _HEIGHT = 620, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 14, 44
#: More marks than this are numbered on the chart and named below it: their names would stand over each other.
_NAMED_MARKS_MAX = 3
_TICKS = 5
#: Dashes tell lines apart where colours do not: in print, and for those who cannot see them.
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")
_TABLE_ROWS_MAX = 200
#: A word for each status beside its colour: a red and a green word look the same to some readers.
_SIGNS = {"pass": "✓", "fail": "✗", "warn": "!", "skip": "–", "inconclusive": "?", "interrupted": "?"}


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A named series of points, in the order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class ChartMark:
    """A stretch of x worth knowing: a fault, a knee. `end` equal to `start` is a vertical line."""

    start: float
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[ChartLine, ...]
    marks: tuple[ChartMark, ...] = ()
    #: Names for x = 0, 1, 2, ... instead of numbers.
    x_names: tuple[str, ...] = ()
    #: Whether to show each point: where there are few of them, measured one by one.
    dots: bool = False

    @property
    def numbered(self) -> bool:
        """Whether marks carry numbers, and their names stand below the chart."""
        return len(self.marks) > _NAMED_MARKS_MAX


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def svg(chart: Chart) -> Markup:
    """The chart as an SVG element. Every text in it is escaped."""
    chart = replace(chart, lines=tuple(ChartLine(line.name, _finite(line.points)) for line in chart.lines))
    points = [point for line in chart.lines for point in line.points]
    xs = [x for x, _ in points] + [edge for mark in chart.marks for edge in (mark.start, mark.end)]
    ys = [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs, default=0.0), max(xs, default=1.0)), ticks(0.0, max(ys, default=1.0))
    x = _Scale(min(xs, default=0.0), max(xs, default=1.0), _LEFT, _WIDTH - _RIGHT)
    if chart.x_names:
        # Half a step on both sides: the outermost names stand within the frame.
        x_ticks, x = [float(i) for i in range(len(chart.x_names))], replace(x, low=-0.5, high=len(chart.x_names) - 0.5)
    elif chart.dots:
        # From nothing: a load that is half the other shall look like half.
        x = replace(x, low=min(0.0, x.low), high=x.high * 1.02)
        x_ticks = ticks(x.low, x.high)
    if x.high <= x.low:
        x = replace(x, high=x.low + 1)
    y = _Scale(0.0, y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(clean(chart.title))}">',
        *_axes(chart, x, y, x_ticks, y_ticks),
        *_marks(chart, x),
        *(_polyline(line, index, x, y) for index, line in enumerate(chart.lines)),
        *(dot for index, line in enumerate(chart.lines) for dot in _dots(chart, line, index, x, y)),
        "</svg>",
    ]
    # Everything interpolated above is a number or went through escape().
    return Markup("".join(parts))  # noqa: S704


def _axes(chart: Chart, x: _Scale, y: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
    parts = []
    for value in y_ticks:
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x_ticks:
        if x.low <= value <= x.high:
            at, low = x.at(value), _HEIGHT - _BOTTOM
            parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{low}" y2="{low + 4}"/>')
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{low + 17}" text-anchor="middle">{_tick(chart, value)}</text>'
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{_text(chart.x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{_text(chart.y_label)}</text>'
    )
    return parts


def _tick(chart: Chart, value: float) -> str:
    return _text(chart.x_names[int(value)]) if chart.x_names else number(value)


def _marks(chart: Chart, x: _Scale) -> list[str]:
    parts = []
    for row, mark in enumerate(chart.marks):
        start, end = x.at(mark.start), x.at(mark.end)
        height = _HEIGHT - _TOP - _BOTTOM
        kind = "mark" if end > start else "edge"
        parts.append(
            f'<rect class="{kind}" x="{start:.1f}" y="{_TOP}" width="{max(1.5, end - start):.1f}" height="{height}">'
            f"<title>{_text(mark.label)}</title></rect>"
        )
        # Neighbouring labels stand on different lines; near the right edge they lean to the left.
        anchor = "end" if start > 0.8 * _WIDTH else "start"
        line, label = (0, str(row + 1)) if chart.numbered else (row % 3, mark.label)
        parts.append(
            f'<text class="tick" x="{start + (-3 if anchor == "end" else 3):.1f}" y="{_TOP + 11 + 12 * line}" '
            f'text-anchor="{anchor}">{_text(label)}</text>'
        )
    return parts


def key(index: int) -> Markup:
    """A short piece of a chart's line, for its legend: the same colour, the same dashes."""
    dash = _DASHES[index % len(_DASHES)]
    # Two numbers and a constant.
    return Markup(  # noqa: S704
        f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true"><line class="line c{index % 5}" '
        f'x1="0" x2="26" y1="4" y2="4" stroke-dasharray="{dash}"/></svg>'
    )


def _dots(chart: Chart, line: ChartLine, index: int, x: _Scale, y: _Scale) -> list[str]:
    if not (chart.dots or chart.x_names or len(line.points) == 1):
        return []
    return [f'<circle class="dot d{index % 5}" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="3"/>' for a, b in line.points]


def _polyline(line: ChartLine, index: int, x: _Scale, y: _Scale) -> str:
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line.points)
    dash = _DASHES[index % len(_DASHES)]
    return (
        f'<polyline class="line c{index % 5}" stroke-dasharray="{dash}" points="{points}">'
        f"<title>{_text(line.name)}</title></polyline>"
    )


def _finite(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((x, y) for x, y in points if math.isfinite(x) and math.isfinite(y))


def ticks(low: float, high: float) -> list[float]:
    """Round values that cover the range."""
    span = high - low if high > low else max(1.0, abs(high))
    raw = span / _TICKS
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step)
    count = math.ceil((max(high, low + step * 0.5) - first * step) / step - 1e-9)
    return [round((first + i) * step, 10) for i in range(count + 1)]


def number(value: float) -> str:
    """A tick's label: as short as it can be."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:g}"


def _text(text: str) -> str:
    return str(escape(clean(text)))


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
