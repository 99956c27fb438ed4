"""What other experiments add to the report: sections of a table each, with what has to be said of it."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.evaluation.cache import DETERMINING, Cache, code_digest
from benchmarks.evaluation.content import Block, Heading, Table, Text
from benchmarks.evaluation.svg import number

PAPER = "benchmarks.paper"
VALIDATION = "benchmarks.validation.section"
LONG = 24
"""Characters of a cell that is a sentence more than a figure."""


def other_sections(cache: Cache, jobs: int, data: Path) -> list[Block]:
    """The paper's experiments and the validation; data: folder of the authors' measurements."""
    paper, validated = paper_sections(cache, jobs, data), validation_section()
    blocks: list[Block] = [Heading("The paper's experiments")] if paper else []
    blocks += chain.from_iterable(map(section, paper))
    return [*blocks, *section(validated, 2)] if validated else blocks


def validation_section() -> dict[str, Any] | None:
    """Of the simulator against the live stack, as it was measured; None if it was not."""
    if not _is_there(VALIDATION):
        return None
    try:
        return dict(importlib.import_module(VALIDATION).committed())
    except FileNotFoundError:
        return None


def paper_sections(cache: Cache, jobs: int, data: Path) -> list[dict[str, Any]]:
    """As `Section.to_json` has them; played once for the same code and data."""
    if not _is_there(PAPER):
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


def _is_there(module: str) -> bool:
    """Whether it can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def section(content: Mapping[str, Any], level: int = 3) -> list[Block]:
    """A section's blocks."""
    rows: Sequence[Sequence[Any]] = content["rows"]
    words = any(isinstance(cell, str) and len(cell) > LONG for row in rows for cell in row[1:])
    return [
        Heading(content["title"], level),
        *map(Text, content["notes"]),
        Table(content["header"], [[shown(cell) for cell in row] for row in rows], words),
    ]


def shown(cell: str | float | None) -> str:
    """A cell as text; None: there is no such figure."""
    if isinstance(cell, str):
        return cell
    return number(cell) if cell is not None and math.isfinite(cell) else "-"
