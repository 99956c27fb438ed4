"""A table of results with what has to be said of it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

Cell = str | float | None
"""None: there is no such figure."""


@dataclass(frozen=True, slots=True)
class Section:
    """One table. Every row has a cell for each column of the header."""

    title: str
    notes: tuple[str, ...]
    """Paragraphs in Markdown, before the table."""
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Check the shape; raises ValueError."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{self.title}: {len(row)} cells under {len(self.header)} columns: {row}")

    def to_json(self) -> dict[str, Any]:
        """Plain."""
        return asdict(self)

    def markdown(self, level: int = 2) -> str:
        """As a part of a page; numbers with three significant digits."""
        lines = ["#" * level + " " + self.title, "", *(part for note in self.notes for part in (note, ""))]
        lines += [_line(self.header), _line("---" for _ in self.header)]
        lines += [_line(map(shown, row)) for row in self.rows]
        return "\n".join(lines) + "\n"


def shown(cell: Cell) -> str:
    """A cell as text."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if not math.isfinite(cell):
        return "-"
    digits = 2 - math.floor(math.log10(abs(cell))) if cell else 0
    return f"{cell:,.{min(max(digits, 0), 4)}f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
