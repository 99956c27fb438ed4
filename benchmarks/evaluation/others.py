"""What other experiments add to the report: sections of a table each, with what has to be said of it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cache import DETERMINING, Cache, code_digest
from benchmarks.evaluation.content import Block, Heading, Table, Text
from benchmarks.evaluation.svg import number

PAPER = "benchmarks.paper"
LONG = 24
"""Characters of a cell that is a sentence more than a figure."""


def other_sections(cache: Cache, jobs: int, data: Path) -> list[Block]:
    """The paper's experiments; data: folder of the authors' measurements."""
    paper = paper_sections(cache, jobs, data)
    return [Heading("The paper's experiments"), *chain.from_iterable(map(section, paper))] if paper else []


def paper_sections(cache: Cache, jobs: int, data: Path) -> list[dict[str, Any]]:
    """As `Section.to_json` has them; played once for the same code and data."""
    if importlib.util.find_spec(PAPER) is None:
        return []
    folders = [
        Path(folder) for name in (PAPER, "uellm_deployer.domain") for folder in importlib.import_module(name).__path__
    ]
    points = data / "uellm_points.csv"
    code = code_digest([*DETERMINING, *folders, *([points] if points.exists() else [])])
    key = f"paper-{code}"
    if (found := cache.find(key)) is None:
        tables = importlib.import_module(f"{PAPER}.tables")
        found = [one.to_json() for one in tables.paper_tables(jobs)]
        cache.keep(key, found)
    return list(found)


def section(content: dict[str, Any]) -> list[Block]:
    """A section's blocks."""
    rows: Sequence[Sequence[Any]] = content["rows"]
    words = any(isinstance(cell, str) and len(cell) > LONG for row in rows for cell in row[1:])
    return [
        Heading(content["title"], 3),
        *map(Text, content["notes"]),
        Table(content["header"], [[shown(cell) for cell in row] for row in rows], words),
    ]


def shown(cell: str | float | None) -> str:
    """A cell as text; None: there is no such figure."""
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else number(cell)
