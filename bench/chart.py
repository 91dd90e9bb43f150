"""The chart: each figure that has a target, as a bar of its share of it, the target being one line for all.

Shares below a hundredth and above ten are cut there, since the axis is logarithmic; the number beside the bar is exact.
"""

from __future__ import annotations

import math
from html import escape
from typing import Final

from bench.figures import Figure, Report
from bench.table import number

_ROW: Final = 22
_TOP: Final = 56
_LEFT: Final = 300
_WIDTH: Final = 420
_LEAST: Final = 0.01
_MOST: Final = 10.0
_COLOURS: Final = {True: "#2a7f5f", False: "#b5402f"}


def chart(report: Report) -> str:
    """The report's chart as an SVG document; it names no font and needs no script."""
    figures = [f for f in report.figures if f.target]
    height = _TOP + _ROW * len(figures) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 190} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<text x="12" y="20" font-size="15">Figures as shares of their targets (left of the line is good)</text>',
    ]
    for share in (0.01, 0.1, 1.0, 10.0):
        x = _place(share)
        colour, width = ("#222", 1.5) if share == 1.0 else ("#ccc", 1)
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 14}"'
        parts.append(f'<line {ends} stroke="{colour}" stroke-width="{width}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle" fill="#666">{share:g}</text>')
    for row, figure in enumerate(figures):
        parts += _bar(figure, _TOP + _ROW * row)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(figure: Figure, y: int) -> list[str]:
    assert figure.target  # chart() takes no others
    end = _place(figure.value / figure.target)
    middle = y + _ROW * 0.62
    label = f"{figure.group} {figure.name}"
    value = f"{number(figure.value)} of {number(figure.target)} {figure.unit}"
    parts = [
        f'<text x="{_LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>',
        f'<rect x="{_LEFT}" y="{y + 2}" width="{max(end - _LEFT, 1):.1f}" height="{_ROW - 6}" '
        f'fill="{_COLOURS[bool(figure.met)]}"><title>{escape(figure.what)}</title></rect>',
        f'<text x="{_LEFT + _WIDTH + 8}" y="{middle:.1f}">{escape(value)}</text>',
    ]
    if figure.low is not None and figure.high is not None:
        low, high = _place(figure.low / figure.target), _place(figure.high / figure.target)
        at = y + _ROW / 2 - 1
        parts.append(f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{at}" y2="{at}" stroke="#000" stroke-width="2"/>')
    return parts


def _place(share: float) -> float:
    cut = min(max(share, _LEAST), _MOST)
    return _LEFT + _WIDTH * math.log(cut / _LEAST) / math.log(_MOST / _LEAST)
