"""Traces that others published: arrival times and lengths, no text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from uellm_simulator.workload import Arrival

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class TraceError(ValueError):
    """A file that is no trace; the message names the line."""


def read_trace(path: Path) -> list[Arrival]:
    """Read a trace by the ending of its name: `.csv` as Azure's of 2023, `.jsonl` as Mooncake's.

    Lines without an answer are left out. The first arrival is at 0.

    Raises TraceError, OSError.
    """
    with path.open(encoding="utf-8", newline="") as file:
        lines = _azure(file, path) if path.suffix == ".csv" else _mooncake(file, path)
        arrivals = sorted(lines, key=lambda one: one.seconds)
    if not arrivals:
        raise TraceError(f"{path.name}: no request in it")
    start = arrivals[0].seconds
    return [Arrival(one.seconds - start, one.prompt_tokens, one.output_tokens, one.tenant) for one in arrivals]


def _azure(lines: Iterable[str], path: Path) -> Iterator[Arrival]:
    rows = csv.DictReader(lines)
    missing = [column for column in AZURE_COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise TraceError(
            f"{path.name}: the column {missing[0]} is missing; there are {', '.join(rows.fieldnames or ())}"
        )
    for number, row in enumerate(rows, start=2):
        try:
            # Seven digits of a second, of which datetime reads six.
            seconds = datetime.fromisoformat(row["TIMESTAMP"][:26] + "+00:00").timestamp()
            prompt, answer = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise TraceError(f"{path.name}, line {number}: {error}") from None
        if answer > 0:
            yield Arrival(seconds, max(1, prompt), answer)


def _mooncake(lines: Iterable[str], path: Path) -> Iterator[Arrival]:
    """`timestamp` in ms, `input_length`, `output_length`; `tenant` may be there."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            prompt, answer = int(row["input_length"]), int(row["output_length"])
            one = Arrival(float(row["timestamp"]) / 1000, max(1, prompt), answer, str(row.get("tenant", "trace")))
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(f"{path.name}, line {number}: {type(error).__name__}: {error}") from None
        if answer > 0:
            yield one
