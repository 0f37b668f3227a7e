"""Line charts as inline SVG, drawn by hand: a few kilobytes each, no script, readable in print and in the dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from agentao_gov.report.gate import printable

__all__ = ["Chart", "Line", "Mark", "svg"]

_WIDTH, _HEIGHT = 760, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44
_TICKS = 5
#: Dashes tell lines apart where colours do not: in print, and for those who cannot see them.
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")


@dataclass(frozen=True, slots=True)
class Line:
    """A named series of points, in the order of x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
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
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()


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
    chart = replace(chart, lines=tuple(Line(line.name, _finite(line.points)) for line in chart.lines))
    points = [point for line in chart.lines for point in line.points]
    xs = [x for x, _ in points] + [edge for mark in chart.marks for edge in (mark.start, mark.end)]
    ys = [y for _, y in points]
    x_ticks, y_ticks = ticks(min(xs, default=0.0), max(xs, default=1.0)), ticks(0.0, max(ys, default=1.0))
    x = _Scale(min(x_ticks[0], min(xs, default=0.0)), max(xs, default=1.0), _LEFT, _WIDTH - _RIGHT)
    if x.high <= x.low:
        x = _Scale(x.low, x.low + 1, x.start, x.end)
    y = _Scale(0.0, y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(printable(chart.title))}">',
        *_axes(chart, x, y, x_ticks, y_ticks),
        *_marks(chart.marks, x),
        *(_polyline(line, index, x, y) for index, line in enumerate(chart.lines)),
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
            parts.append(f'<text class="tick" x="{at:.1f}" y="{low + 17}" text-anchor="middle">{number(value)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{_text(chart.x_label)}</text>'
    )
    parts.append(
        f'<text class="axis" transform="translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{_text(chart.y_label)}</text>'
    )
    return parts


def _marks(marks: Sequence[Mark], x: _Scale) -> list[str]:
    parts = []
    for row, mark in enumerate(marks):
        start, end = x.at(mark.start), x.at(mark.end)
        height = _HEIGHT - _TOP - _BOTTOM
        parts.append(
            f'<rect class="mark" x="{start:.1f}" y="{_TOP}" width="{max(1.5, end - start):.1f}" height="{height}"/>'
        )
        # Neighbouring labels stand on different lines; near the right edge they lean to the left.
        anchor = "end" if start > 0.8 * _WIDTH else "start"
        parts.append(
            f'<text class="tick" x="{start + (-3 if anchor == "end" else 3):.1f}" y="{_TOP + 11 + 12 * (row % 3)}" '
            f'text-anchor="{anchor}">{_text(mark.label)}</text>'
        )
    return parts


def _polyline(line: Line, index: int, x: _Scale, y: _Scale) -> str:
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
    return str(escape(printable(text)))
