"""Small SVG charts for the page: lines with intervals, colours left to the page's style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 164, 14, 34
_LABEL_GAP = 15

_CHART = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ title }}">
{% for y, text in y_ticks %}
<line class="rule" x1="{{ left }}" x2="{{ right }}" y1="{{ y }}" y2="{{ y }}"/>
<text class="tick" x="{{ left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in x_ticks %}
<text class="tick" x="{{ x }}" y="{{ bottom + 18 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<text class="tick" x="{{ (left + right) / 2 }}" y="{{ height - 2 }}" text-anchor="middle">\
{{ x_title }}</text>
{% for line in lines %}
<g class="{{ line.style }}">
{% for x, low, high in line.whiskers %}
<line class="whisker" x1="{{ x }}" x2="{{ x }}" y1="{{ low }}" y2="{{ high }}"/>
{% endfor %}
<polyline class="line" points="{{ line.points }}"/>
{% for x, y, note in line.dots %}
<circle class="dot" cx="{{ x }}" cy="{{ y }}" r="3.5"><title>{{ note }}</title></circle>
{% endfor %}
<text class="name" x="{{ right + 10 }}" y="{{ line.name_y }}">{{ line.name }}</text>
</g>
{% endfor %}
</svg>
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value; ``low`` and ``high`` span its interval and are drawn when they differ."""

    x: float
    y: float
    low: float
    high: float
    note: str
    """Shown when the pointer rests on the dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line, named at its right end."""

    name: str
    points: Sequence[Point]
    style: str
    """Class of the style sheet: ``s1`` to ``s4``, with ``dashed`` for a reference line."""
    dots: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Range of an axis and where it is labelled."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


PERCENT = Axis(low=0, high=1, ticks=[(n / 4, f"{25 * n} %") for n in range(5)])


def line_chart(
    title: str,
    series: Sequence[Series],
    x_axis: Axis,
    y_axis: Axis,
    *,
    x_title: str,
    width: int = 560,
    height: int = 300,
) -> Markup:
    """An SVG element; series without points are left out. ``title`` is read to the blind."""
    right, bottom = width - _RIGHT, height - _BOTTOM

    def to_x(value: float) -> float:
        return _place(value, x_axis, _LEFT, right)

    def to_y(value: float) -> float:
        return _place(value, y_axis, bottom, _TOP)

    drawn = [one for one in series if one.points]
    names = _spread([to_y(one.points[-1].y) + 4 for one in drawn], bottom)
    lines = [
        {
            "style": one.style,
            "name": one.name,
            "name_y": name_y,
            "points": " ".join(f"{to_x(point.x)},{to_y(point.y)}" for point in one.points),
            "dots": [(to_x(p.x), to_y(p.y), p.note) for p in one.points] if one.dots else [],
            "whiskers": [
                (to_x(p.x), to_y(p.low), to_y(p.high)) for p in one.points if p.low < p.high
            ],
        }
        for one, name_y in zip(drawn, names, strict=True)
    ]
    return Markup(
        _CHART.render(
            title=title,
            width=width,
            height=height,
            left=_LEFT,
            right=right,
            bottom=bottom,
            x_title=x_title,
            x_ticks=[(to_x(value), text) for value, text in x_axis.ticks],
            y_ticks=[(to_y(value), text) for value, text in y_axis.ticks],
            lines=lines,
        )
    )


def _place(value: float, axis: Axis, start: float, end: float) -> float:
    span = (axis.high - axis.low) or 1.0
    return round(start + (end - start) * (value - axis.low) / span, 1)


def _spread(heights: Sequence[float], bottom: float) -> list[float]:
    """Push names apart so that none covers another, keeping their order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = dict.fromkeys(order, 0.0)
    above = float("-inf")
    for index in order:
        placed[index] = above = max(heights[index], above + _LABEL_GAP)
    # What was pushed below the axis moves up again, taking its neighbours along.
    below = bottom + _LABEL_GAP
    for index in reversed(order):
        placed[index] = below = min(placed[index], below - _LABEL_GAP)
    return [round(placed[index], 1) for index in range(len(heights))]
