"""What a report is made of, rendered twice: as Markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Heading:
    """Of a section; level 2 or 3."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """As GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.text.lower()).replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; `code` stands between backticks, links as in Markdown."""

    text: str


@dataclass(frozen=True, slots=True)
class Points:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """The first column names the row; the others are numbers, or words."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot, on the page only."""

    svg: str
    caption: str
    names: Sequence[tuple[str, str]] = ()
    """Legend: a name and the CSS class of its colour."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Plots side by side, where there is room."""

    figures: Sequence[Figure]


Block = Heading | Text | Points | Table | Figures


def markdown(blocks: Sequence[Block]) -> str:
    """Everything but the plots."""
    parts = [part for part in map(_markdown, blocks) if part]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Points(items):
            return "\n".join(f"- {item}" for item in items)
        case Table(header, rows, words):
            ruler = "|---|" + ("---|" if words else "---:|") * (len(header) - 1)
            return "\n".join([_line(header), ruler, *map(_line, rows)])
        case Figures():
            return ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def html(blocks: Sequence[Block]) -> str:
    """The body of a page."""
    return "\n".join(map(_html, blocks))


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            anchor = f' id="{block.anchor}"' if level == 2 else ""
            return f"<h{level}{anchor}>{_inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Points(items):
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows, words):
            kind = "wide words" if words else "wide"
            head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in header)
            body = "\n".join(_row(row) for row in rows)
            return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        case Figures(figures):
            return '<div class="plots">' + "\n".join(map(_figure, figures)) + "</div>"


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{_inline(first)}</th>{"".join(f"<td>{_inline(cell)}</td>" for cell in others)}</tr>'


def _figure(figure: Figure) -> str:
    names = "".join(f'<span class="{colour}"><i></i>{_inline(name)}</span>' for name, colour in figure.names)
    legend = f'<div class="names">{names}</div>' if names else ""
    return f"<figure><figcaption>{_inline(figure.caption)}</figcaption>{figure.svg}{legend}</figure>"


def _inline(text: str) -> str:
    shown = escape(text, quote=False)
    shown = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", shown)
    shown = re.sub(r"(?<![*\w])\*([^*\s][^*]*)\*", r"<em>\1</em>", shown)
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
    return re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', shown)
