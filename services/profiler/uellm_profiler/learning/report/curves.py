"""Curves that training writes: how order improves with more data, or with more layers.

A file holds `{"title": ..., "x_title": ..., "points": [{"name", "x", "tau", "tau_low", "tau_high", ...}, ...]}`: one
point a trained predictor, points of one name being joined in the order of `x`; other fields are shown as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEEDED = ("name", "x", "tau", "tau_low", "tau_high")


@dataclass(frozen=True, slots=True)
class Curve:
    """What a file holds."""

    title: str
    x_title: str
    points: Sequence[dict[str, Any]]


def read_curve(file: Path) -> Curve:
    """Raises ValueError for a file that is none."""
    try:
        content = json.loads(file.read_text("utf-8"))
        curve = Curve(content["title"], content["x_title"], content["points"])
        for point in curve.points:
            for name in _NEEDED:
                point[name]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file.name} is no curve: {error!r}") from error
    return curve


def write_curve(file: Path, curve: Curve) -> None:
    """Write what `read_curve` reads."""
    content = {"title": curve.title, "x_title": curve.x_title, "points": list(curve.points)}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
