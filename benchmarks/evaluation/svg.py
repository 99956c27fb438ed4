"""Plots as SVG inside a page: colours are the page's, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44


@dataclass(frozen=True, slots=True)
class Axis:
    """`low` to `high` are what it shows; `names` stand at the ticks in place of numbers."""

    title: str
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False
    names: Sequence[str] = ()

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1; beyond the ends at them."""
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def labels(self) -> list[tuple[float, str]]:
        """Of the ticks."""
        return list(zip(self.ticks, self.names or [number(tick) for tick in self.ticks], strict=True))


def linear(title: str, most: float) -> Axis:
    """From 0 to a round number that is not less."""
    step = 10 ** math.floor(math.log10(most)) if most > 0 else 1.0
    step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if most <= 5 * step * part + 1e-12)
    count = math.ceil(most / step - 1e-9)
    return Axis(title, 0.0, step * max(1, count), [step * tick for tick in range(max(1, count) + 1)])


def logarithmic(title: str, low: float, high: float) -> Axis:
    """With ticks at 1, 3, 10, ..."""
    low, high = max(low, 1e-3), max(high, 2 * max(low, 1e-3))
    ticks = [part * 10.0**power for power in range(-3, 7) for part in (1, 3)]
    return Axis(title, low, high, [tick for tick in ticks if low <= tick <= high], logarithmic=True)


@dataclass(slots=True)
class Plot:
    """A drawing in the coordinates of its axes; `label` says to a reader who does not see it what it shows."""

    label: str
    x: Axis
    y: Axis
    height: int = HEIGHT
    _marks: list[str] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], colour: str, title: str) -> None:
        """Join points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._at, points))
        self._marks.append(f'<polyline class="line {colour}" points="{path}">{_title(title)}</polyline>')

    def interval(self, x: float, low: float, high: float, colour: str) -> None:
        """Upright, around a point."""
        (across, bottom), (_, top) = self._at((x, low)), self._at((x, high))
        self._marks.append(f'<path class="line thin {colour}" d="M{across:.1f} {bottom:.1f}V{top:.1f}"/>')

    def dot(self, at: tuple[float, float], colour: str, title: str) -> None:
        """One point."""
        x, y = self._at(at)
        self._marks.append(f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">{_title(title)}</circle>')

    def bar(self, begin: tuple[float, float], end: tuple[float, float], colour: str, title: str) -> None:
        """From one corner to the other."""
        (x1, y1), (x2, y2) = self._at(begin), self._at(end)
        size = f'width="{max(0.5, x2 - x1 - 0.6):.1f}" height="{max(0.5, abs(y2 - y1) - 1):.1f}"'
        corner = f'x="{x1:.1f}" y="{min(y1, y2):.1f}"'
        self._marks.append(f'<rect class="bar {colour}" {corner} {size}>{_title(title)}</rect>')

    def svg(self) -> str:
        """The element."""
        box = f'viewBox="0 0 {WIDTH} {self.height}"'
        parts = [f'<svg {box} role="img" aria-label="{escape(self.label)}">', *self._frame(), *self._marks, "</svg>"]
        return "".join(parts)

    def _at(self, point: tuple[float, float]) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + across * self.x.share(point[0]), self.height - BOTTOM - up * self.y.share(point[1])

    def _frame(self) -> list[str]:
        bottom, parts = self.height - BOTTOM, []
        for tick, name in self.x.labels():
            x, _ = self._at((tick, self.y.low))
            parts.append(f'<path class="grid" d="M{x:.1f} {bottom}V{TOP}"/>{_text(x, bottom + 15, name)}')
        for tick, name in self.y.labels():
            _, y = self._at((self.x.low, tick))
            parts.append(
                f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>{_text(LEFT - 6, y + 4, name, "end")}'
            )
        parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT + (WIDTH - LEFT - RIGHT) / 2, self.height - 8, self.x.title))
        middle = TOP + (bottom - TOP) / 2
        parts.append(_text(13, middle, self.y.title, turn=f' transform="rotate(-90 13 {middle:.1f})"'))
        return parts


def number(value: float) -> str:
    """Short."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def show(value: float) -> str:
    """As `number`; empty for what is not one."""
    return "" if math.isnan(value) else number(value)


def percent(value: float) -> str:
    """A share; empty for what is not a number."""
    return "" if math.isnan(value) else f"{value:.1%}"


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _text(x: float, y: float, text: str, anchor: str = "middle", turn: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{escape(text)}</text>'
