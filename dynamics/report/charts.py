"""Small SVG charts for the page: lines with intervals, and stacked bars.

Colours are left to the page's style sheet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 160, 14, 38
_LABEL_GAP = 15
_BAR_HEIGHT, _BAR_GAP, _BAR_LEFT, _BAR_RIGHT = 26, 8, 72, 64
_LETTER = 7.0
"""About the width of a letter: text is drawn into a part where it fits."""

_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_CHART = _ENVIRONMENT.from_string(
    """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ title }}">
{% for y, text in y_ticks %}
<line class="rule" x1="{{ left }}" x2="{{ right }}" y1="{{ y }}" y2="{{ y }}"/>
<text class="tick" x="{{ left - 8 }}" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in x_ticks %}
<text class="tick" x="{{ x }}" y="{{ bottom + 18 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<text class="tick" x="{{ (left + right) / 2 }}" y="{{ height - 5 }}" text-anchor="middle">\
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
_BARS = _ENVIRONMENT.from_string(
    """\
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ title }}">
{% for bar in bars %}
<text class="bar-name" x="0" y="{{ bar.y + 17 }}">{{ bar.name }}</text>
{% for part in bar.parts %}
<g class="{{ part.style }}">
<rect class="part" x="{{ part.x }}" y="{{ bar.y }}" width="{{ part.width }}" \
height="{{ part_height }}"><title>{{ part.note }}</title></rect>
{% if part.text %}
<text class="part-name" x="{{ part.x + 6 }}" y="{{ bar.y + 17 }}">{{ part.text }}</text>
{% endif %}
</g>
{% endfor %}
<text class="bar-total" x="{{ bar.end }}" y="{{ bar.y + 17 }}">{{ bar.total }}</text>
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a stacked bar."""

    name: str
    value: float
    """At least 0."""
    style: str
    """Class of the style sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A horizontal bar, named at its left end, its total at its right end."""

    name: str
    parts: Sequence[Part]


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


def stacked_bars(title: str, bars: Sequence[Bar], *, unit: str, width: int = 960) -> Markup:
    """An SVG element with one bar below the other, all on one scale that starts at 0.

    A part carries its name and value, or its value, where there is room; both are always shown
    when the pointer rests on it.
    """
    longest = max((_total(bar) for bar in bars), default=0.0)
    scale = (width - _BAR_LEFT - _BAR_RIGHT) / (longest or 1.0)
    drawn = []
    for number, bar in enumerate(bars):
        parts, left = [], float(_BAR_LEFT)
        for part in bar.parts:
            extent, short = scale * part.value, f"{part.value:.0f} {unit}"
            texts = (f"{part.name} {short}", short, "")
            parts.append(
                {
                    "style": part.style,
                    "x": round(left, 1),
                    "width": round(extent, 1),
                    "note": f"{bar.name}, {part.name}: {part.value:.1f} {unit}",
                    "text": next(t for t in texts if not t or _LETTER * len(t) + 10 < extent),
                }
            )
            left += extent
        drawn.append(
            {
                "name": bar.name,
                "y": number * (_BAR_HEIGHT + _BAR_GAP),
                "parts": parts,
                "end": round(left + 8, 1),
                "total": f"{_total(bar):.0f} {unit}",
            }
        )
    return Markup(
        _BARS.render(
            title=title,
            width=width,
            height=len(bars) * (_BAR_HEIGHT + _BAR_GAP),
            part_height=_BAR_HEIGHT,
            bars=drawn,
        )
    )


def percent_axis(values: Sequence[float]) -> Axis:
    """A part of 0 .. 100 % that holds all values, between round numbers, with at most six ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    for step in (1, 2, 5, 10, 25):
        # Rounded: 0.7 is a round number, though 100 * 0.7 / 10 is a little more than 7.
        first = math.floor(round(100 * low / step, 6))
        last = math.ceil(round(100 * high / step, 6))
        if last - first <= 5:
            break
    last = max(last, first + 1)
    ticks = [(n * step / 100, f"{n * step} %") for n in range(first, last + 1)]
    return Axis(low=ticks[0][0], high=ticks[-1][0], ticks=ticks)


def _total(bar: Bar) -> float:
    return sum(part.value for part in bar.parts)


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
