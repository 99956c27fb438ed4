"""The authors' measured runs: step-time features of each, and the configuration that it was measured in.

A table of figures taken from the logs of the paper's public experiments (HYIUYOU/UELLM, commit 521d043); it is no part
of the project. `UELLM_SHARED` names the folder that has it under `data/`.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

POINTS = (
    Path(os.environ.get("UELLM_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data" / "uellm_points.csv"
)
PROMPT_TOKENS = 30
"""Of a prompt, which the logs do not record: total lengths less generated tokens are 16 to 41."""

Features = tuple[float, float, float, float, float]
"""Decode steps; row-steps; context tokens; cold starts; warm starts."""
TERMS = ("base", "per row", "per context token", "cold start", "warm start")


@dataclass(frozen=True, slots=True)
class Point:
    """A measured run of static batches, one after the other."""

    group: str
    """Model and number of GPUs."""
    configuration: str
    """Batch size of a single batch, or the system that served a whole run."""
    batches: tuple[tuple[int, int], ...]
    """Rows and generated tokens of the longest, by batch."""
    seconds: float

    @property
    def features(self) -> Features:
        """What the step-time model multiplies; rows stay to the end of their batch, as they did there."""
        steps = row_steps = context = 0.0
        for rows, tokens in self.batches:
            decoded = tokens - 1
            steps += decoded
            row_steps += decoded * rows
            context += rows * (decoded * PROMPT_TOKENS + decoded * (decoded + 1) / 2)
        return steps, row_steps, context, 1.0, len(self.batches) - 1.0


def is_there(path: Path = POINTS) -> bool:
    """Whether the measurements are at hand."""
    return path.exists()


def read_points(path: Path = POINTS) -> dict[str, list[Point]]:
    """Runs by group.

    Left out are those that another process disturbed, and the deployment variants: the same command on one GPU took 29,
    31 or 60 ms a token, and the logs do not say why.
    """
    groups: defaultdict[str, list[Point]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if "CONTAMINATED" in row["note"] or row["src"].startswith("llm_deployment"):
                continue
            point = _point(row)
            groups[point.group].append(point)
    return dict(sorted(groups.items()))


def disturbed(path: Path = POINTS) -> list[Point]:
    """Whole runs during which another process used the GPUs."""
    with path.open(newline="") as file:
        return [_point(row) for row in csv.DictReader(file) if "CONTAMINATED" in row["note"]]


def _point(row: dict[str, str]) -> Point:
    sizes, tokens = (tuple(map(int, row[column].split("|"))) for column in ("batch", "out_tokens"))
    kind, system, *_ = row["src"].split("/")
    configuration = system if kind == "UELM" else f"batch {sizes[0]}"
    group = f"{row['model']}, {row['num_gpus']} GPU"
    return Point(group, configuration, tuple(zip(sizes, tokens, strict=True)), float(row["seconds"]))
