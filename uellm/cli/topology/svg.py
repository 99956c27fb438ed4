"""As much of SVG as drawings here need: boxes behind, lines over them, cards and texts in front."""

from __future__ import annotations

from enum import IntEnum
from xml.sax.saxutils import escape, quoteattr

_FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
# Advance widths of DejaVu Sans, which is wider than the others, in parts of the font's size, at least.
_NARROW, _USUAL, _WIDE = 0.36, 0.64, 0.98
_NARROW_CHARACTERS, _WIDE_CHARACTERS = frozenset(" .,:;'|!()[]-/fijlrtI"), frozenset("mwMW@%")
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


class Layer(IntEnum):
    """What lies over what."""

    BACK = 0
    LINES = 1
    FRONT = 2


class Svg:
    """A drawing, in pixels."""

    def __init__(self) -> None:
        self._elements: dict[Layer, list[str]] = {layer: [] for layer in Layer}

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str = "#ffffff",
        stroke: str = "none",
        radius: float = 0,
        layer: Layer = Layer.FRONT,
    ) -> None:
        """A rectangle with round corners."""
        place = {"x": x, "y": y, "width": width, "height": height, "rx": radius}
        self._add(layer, "rect", **place, fill=fill, stroke=stroke)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, width: float) -> None:
        """A straight line."""
        self._add(
            Layer.LINES, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, stroke_linecap="round"
        )

    def arc(self, x1: float, x2: float, y: float, height: float, stroke: str, width: float, *, dashed: bool) -> None:
        """A curve between two places at one height, over what is between them."""
        top = y - height
        path = f"M {x1:.1f} {y:.1f} C {x1:.1f} {top:.1f} {x2:.1f} {top:.1f} {x2:.1f} {y:.1f}"
        dash = {"stroke_dasharray": "6 4"} if dashed else {}
        self._add(Layer.LINES, "path", d=path, fill="none", stroke=stroke, stroke_width=width, **dash)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        weight: str = "normal",
        anchor: str = "start",
        fill: str = "#1f2933",
    ) -> float:
        """A line of text; returns where it ends at the most."""
        style = {"font_weight": weight, "text_anchor": anchor, "fill": fill}
        self._add(Layer.FRONT, "text", text, x=x, y=y, font_size=size, **style)
        return x + text_width(text, size)

    def document(self, width: float, height: float) -> str:
        """The whole, on white."""
        size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONT}">']
        parts += ['<rect width="100%" height="100%" fill="#ffffff"/>']
        parts += [element for layer in Layer for element in self._elements[layer]]
        return "\n".join([*parts, "</svg>", ""])

    def _add(self, layer: Layer, tag: str, content: str = "", /, **attributes: str | float) -> None:
        written = " ".join(
            f"{name.replace('_', '-')}={quoteattr(f'{value:.4g}' if isinstance(value, float) else str(value))}"
            for name, value in attributes.items()
        )
        self._elements[layer].append(
            f"<{tag} {written}>{escape(content)}</{tag}>" if content else f"<{tag} {written}/>"
        )


def text_width(text: str, size: float) -> float:
    """How wide a text is at the most."""
    narrow = sum(character in _NARROW_CHARACTERS for character in text)
    wide = sum(character in _WIDE_CHARACTERS for character in text)
    return size * (_NARROW * narrow + _WIDE * wide + _USUAL * (len(text) - narrow - wide))


def cut(text: str, size: float, room: float) -> str:
    """As much of a text as has room, an ellipsis at its end if that is not all."""
    if text_width(text, size) <= room:
        return text
    while text and text_width(text + _ELLIPSIS, size) > room:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS
