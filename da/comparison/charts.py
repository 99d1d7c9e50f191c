"""Charts as inline SVG. Colours are the page's CSS variables, so that they follow its light and dark theme."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

MOST_NAMES = 40  # beside a confusion matrix; of more classes each cell still tells its own when pointed at
WIDTH = 360  # of every chart, in SVG units; text of size 11 stays readable at phone width


class Series(NamedTuple):
    """One line of a chart: mean over seeds with the range between its lowest and highest seed."""

    name: str
    color: str  # a CSS colour
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def curves(series: Sequence[Series], title: str) -> str:
    """A line chart over training steps."""
    height, left, right, top, bottom = 240, 38, 8, 10, 28
    last = max(max(s.steps) for s in series)
    low, high = min(min(s.low) for s in series), max(max(s.high) for s in series)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def x(step: float) -> float:
        return left + (WIDTH - left - right) * step / last

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / ((high - low) or 1)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="rule" x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, last):
        if tick <= last:
            anchor = "end" if x(tick) > WIDTH - 25 else "middle"
            shown = _short(tick)
            parts.append(f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="{anchor}">{shown}</text>')
    for s in series:
        upper = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(s.steps, s.high)]
        lower = [f"{x(a):.1f},{y(b):.1f}" for a, b in zip(s.steps, s.low)]
        line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(s.steps, s.mean))
        tip = f"<title>{escape(s.name)}: {s.mean[-1]:.3g} at step {s.steps[-1]:g}</title>"
        parts.append(f'<polygon points="{" ".join(upper + lower[::-1])}" style="fill:{s.color};opacity:.15"/>')
        parts.append(f'<polyline points="{line}" style="stroke:{s.color}">{tip}</polyline>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5" style="fill:{s.color}"/>'
            for a, b in zip(s.steps, s.mean)
            if len(s.steps) <= 12
        ]
    return _svg(height, parts, title)


def bars(names: Sequence[str], values: Sequence[float | None], baseline: Sequence[float | None], color: str) -> str:
    """Horizontal bars of one method's IoU per class (0 to 100), with source only as a tick and the difference."""
    line, left, span = 16, 92, 170
    parts = []
    for i, (name, value, base) in enumerate(zip(names, values, baseline)):
        y = i * line
        parts.append(f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="track" x="{left}" y="{y + 3}" width="{span}" height="{line - 6}"/>')
        if value is None:
            parts.append(f'<text class="faint" x="{left + 4}" y="{y + 12}">not in the labels</text>')
            continue
        width = span * value / 100
        parts.append(f'<rect x="{left}" y="{y + 3}" width="{width:.1f}" height="{line - 6}" style="fill:{color}"/>')
        parts.append(f'<text x="{left + span + 36}" y="{y + 12}" text-anchor="end">{value:.1f}</text>')
        if base is not None:
            tick = left + span * base / 100
            parts.append(f'<line class="mark" x1="{tick:.1f}" x2="{tick:.1f}" y1="{y + 1}" y2="{y + line - 1}"/>')
            change = f"{value - base:+.1f}"
            sign = "faint" if change[1:] == "0.0" else "up" if value > base else "down"
            parts.append(f'<text class="{sign}" x="{WIDTH - 4}" y="{y + 12}" text-anchor="end">{change}</text>')
    return _svg(len(names) * line + 4, parts, "IoU per class")


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """A confusion matrix, each row divided by its sum: the share of a label's pixels given to each class. Predictions
    of none of the classes, where `counts` have a column of them, are left out of the picture."""
    rows = counts.sum(1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    left, top, cell = 84, 4, (WIDTH - 88) / len(names)
    parts = [
        f'<rect class="track" x="{left}" y="{top}" width="{cell * len(names):.1f}" height="{cell * len(names):.1f}"/>'
    ]
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        if len(names) <= MOST_NAMES:
            parts.append(f'<text x="{left - 5}" y="{top + middle + 4:.1f}" text-anchor="end">{escape(name)}</text>')
            place = f"translate({left + middle + 4:.1f},{top + cell * len(names) + 5:.1f}) rotate(-90)"
            parts.append(f'<text transform="{place}" text-anchor="end">{escape(name)}</text>')
        for j, share in enumerate(shares[i, : len(names)]):
            if share >= 0.005:
                tip = f"<title>{escape(name)} taken for {escape(names[j])}: {100 * share:.1f} %</title>"
                kind = "hit" if i == j else "miss"
                parts.append(
                    f'<rect class="{kind}" x="{left + j * cell:.1f}" y="{top + i * cell:.1f}" width="{cell:.1f}" '
                    f'height="{cell:.1f}" fill-opacity="{share**0.6:.2f}">{tip}</rect>'
                )
    return _svg(round(top + cell * len(names) + 84), parts, "confusion matrix")


def _svg(height: int, parts: Sequence[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    """Round values from about `low` to about `high`."""
    rough = max(high - low or abs(high), 1e-9) / 4
    unit = 10.0 ** np.floor(np.log10(rough))
    step = float(unit * next(m for m in (1, 2, 2.5, 5, 10) if m * unit >= rough))
    first, last = int(np.floor(low / step + 1e-6)), int(np.ceil(high / step - 1e-6))
    return [round(n * step, 10) for n in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:g}"
