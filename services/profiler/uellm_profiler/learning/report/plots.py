"""The card's plots, drawn as SVG by hand: what they show is simple, and the same input gives the same file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from uellm_profiler.learning.report.curves import Curve
from uellm_profiler.learning.report.forecasts import Bools, Floats, Ints

COLOURS = ("#0b6e99", "#d9730d", "#0f7b6c", "#6940a5", "#ad1a72", "#64473a")
_WIDTH, _HEIGHT = 460, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 40, 58


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis; `low` to `high` are what it shows."""

    title: str
    low: float
    high: float
    logarithmic: bool = False
    ticks: Sequence[float] = ()

    def share(self, value: float) -> float:
        """Where a value lies, 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(slots=True)
class Plot:
    """A drawing in the coordinates of its axes."""

    title: str
    x: Axis
    y: Axis
    _marks: list[str] = field(default_factory=list)
    _names: list[tuple[str, str]] = field(default_factory=list)

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False, name: str = "") -> None:
        """Join points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(self._place, points))
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self._marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>')
        if name:
            self._names.append((name, colour))

    def dot(self, at: tuple[float, float], colour: str, *, radius: float = 2.2, hollow: bool = False) -> None:
        """One point."""
        x, y = self._place(at)
        fill = f'fill="none" stroke="{colour}"' if hollow else f'fill="{colour}"'
        self._marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {fill} opacity="0.55"/>')

    def bar(self, low: float, high: float, height: float, colour: str) -> None:
        """A bar from the x axis up."""
        (x1, y1), (x2, y2) = self._place((low, self.y.low)), self._place((high, height))
        self._marks.append(
            f'<rect x="{x1 + 1:.1f}" y="{y2:.1f}" width="{x2 - x1 - 2:.1f}" height="{y1 - y2:.1f}" fill="{colour}"/>'
        )

    def svg(self) -> str:
        """The file's content."""
        size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            _text(_WIDTH / 2, 20, self.title, weight="bold"),
            *self._frame(),
            *self._marks,
            *self._legend(),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    def _place(self, at: tuple[float, float]) -> tuple[float, float]:
        across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * self.x.share(at[0]), _HEIGHT - _BOTTOM - up * self.y.share(at[1])

    def _frame(self) -> list[str]:
        parts = []
        for tick in self.x.ticks:
            x, y = self._place((tick, self.y.low))
            parts.append(f'<path d="M{x:.1f} {y:.1f}V{_TOP}" stroke="#e3e3e3"/>')
            parts.append(_text(x, y + 17, _number(tick)))
        for tick in self.y.ticks:
            x, y = self._place((self.x.low, tick))
            parts.append(f'<path d="M{x:.1f} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e3e3e3"/>')
            parts.append(_text(x - 6, y + 4, _number(tick), anchor="end"))
        across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        parts.append(f'<rect x="{_LEFT}" y="{_TOP}" width="{across}" height="{up}" fill="none" stroke="#888"/>')
        parts.append(_text(_LEFT + across / 2, _HEIGHT - 14, self.x.title))
        middle = _TOP + up / 2
        parts.append(_text(15, middle, self.y.title, turn=f' transform="rotate(-90 15 {middle})"'))
        return parts

    def _legend(self) -> list[str]:
        """Top left, where the diagonal leaves room."""
        if not self._names:
            return []
        width = 34 + 7 * max(len(name) for name, _ in self._names)
        height = 8 + 17 * len(self._names)
        parts = [
            f'<rect x="{_LEFT + 6}" y="{_TOP + 6}" width="{width}" height="{height}" fill="white" opacity="0.85"/>'
        ]
        for i, (name, colour) in enumerate(self._names):
            y = _TOP + 19 + 17 * i
            parts.append(f'<path d="M{_LEFT + 12} {y}h16" stroke="{colour}" stroke-width="2.5"/>')
            parts.append(_text(_LEFT + 34, y + 4, name, anchor="start"))
        return parts


def reliability(histograms: Mapping[str, Sequence[float]]) -> str:
    """Nominal probability against the share of answers within it, from the histograms in a card's `pit`."""
    ticks = [0.2 * i for i in range(6)]
    plot = Plot(
        "Reliability", Axis("predicted probability", 0, 1, ticks=ticks), Axis("share of answers", 0, 1, ticks=ticks)
    )
    plot.line([(0, 0), (1, 1)], "#888", dashed=True)
    for colour, (name, shares) in zip(COLOURS, histograms.items(), strict=False):
        reached, points = 0.0, [(0.0, 0.0)]
        for i, share in enumerate(shares, 1):
            reached += share
            points.append((i / len(shares), min(1.0, reached)))
        plot.line(points, colour, name=name)
    return plot.svg()


def pit_histogram(name: str, shares: Sequence[float]) -> str:
    """Shares of the answers in equal parts of their predicted distributions; flat where it is calibrated."""
    high = max(0.2, math.ceil(max(shares) * 20) / 20)
    step = 0.05 if high <= 0.3 else 0.1
    plot = Plot(
        f"PIT of {name}",
        Axis("predicted probability", 0, 1, ticks=[0.2 * i for i in range(6)]),
        Axis("share of answers", 0, high, ticks=[step * i for i in range(int(high / step + 1.5))]),
    )
    for i, share in enumerate(shares):
        plot.bar(i / len(shares), (i + 1) / len(shares), share, COLOURS[0])
    plot.line([(0, 1 / len(shares)), (1, 1 / len(shares))], "#888", dashed=True)
    return plot.svg()


def scatter(name: str, points: Floats, lengths: Ints, cut: Bools) -> str:
    """Predicted median against the observed length, in tokens; hollow where the answer was cut."""
    low = max(1.0, min(points.min(), lengths.min()) * 0.9)
    high = max(points.max(), lengths.max()) * 1.1
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000) if low <= tick <= high]
    plot = Plot(
        f"{name}: predicted against observed",
        Axis("observed length, tokens (hollow: cut)", low, high, logarithmic=True, ticks=ticks),
        Axis("predicted median, tokens", low, high, logarithmic=True, ticks=ticks),
    )
    plot.line([(low, low), (high, high)], "#888", dashed=True)
    for point, length, hollow in zip(points, lengths, cut, strict=True):
        plot.dot((float(length), float(point)), COLOURS[1] if hollow else COLOURS[0], hollow=bool(hollow))
    return plot.svg()


def curve_plot(curve: Curve, *, logarithmic: bool) -> str:
    """Tau-b with its interval, one line a name."""
    xs = sorted({float(point["x"]) for point in curve.points})
    lowest = min(0.0, *(point["tau_low"] for point in curve.points))
    low, high = math.floor(lowest * 10) / 10, math.ceil(max(point["tau_high"] for point in curve.points) * 10) / 10
    left, right = (xs[0] / 1.1, xs[-1] * 1.1) if logarithmic else (xs[0] - 0.04 * (xs[-1] - xs[0] or 1), xs[-1] * 1.04)
    ticks = [low + 0.1 * i for i in range(round((high - low) * 10) + 1)]
    plot = Plot(
        curve.title,
        Axis(curve.x_title, left, right, logarithmic, xs),
        Axis("Kendall tau-b", low, max(high, low + 0.1), ticks=ticks),
    )
    names = dict.fromkeys(str(point["name"]) for point in curve.points)
    for colour, name in zip(COLOURS, names, strict=False):
        mine = sorted((point for point in curve.points if str(point["name"]) == name), key=lambda point: point["x"])
        plot.line([(point["x"], point["tau"]) for point in mine], colour, name=name)
        for point in mine:
            plot.dot((point["x"], point["tau"]), colour, radius=3.5)
            plot.line([(point["x"], point["tau_low"]), (point["x"], point["tau_high"])], colour)
    return plot.svg()


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "normal", turn: str = "") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="#222"{turn}>'
        f"{escape(text)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1.5 or value == round(value) else f"{value:.2g}"
