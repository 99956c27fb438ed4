"""Writes what docs/predictor.md shows of the predictors: the report card, curves and timings as tables and plots.

    python benchmarks/predictor_page.py [--curves FOLDER] [--latency FILE]

Reads the committed card, and what `predictor_curves.py` and `predictor_latency.py` wrote; these are copied into
docs/predictor, from where they are read if they are not given. Writes the model cards of the shipped adapters, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from uellm_profiler.adapters.loader import shipped_adapter
from uellm_profiler.learning.evaluation import CARD, read_evaluation
from uellm_profiler.learning.report.command import CARD as CARD_FILE
from uellm_profiler.learning.report.command import PREDICTIONS
from uellm_profiler.learning.report.curves import read_curve
from uellm_profiler.learning.report.entrants import read_predictions
from uellm_profiler.learning.report.forecasts import Forecasts, Outcomes
from uellm_profiler.learning.report.model_card import model_card
from uellm_profiler.learning.report.plots import curve_plot, pit_histogram, reliability, scatter
from uellm_profiler.learning.report.settings import decodings
from uellm_profiler.learning.report.tables import (
    Table,
    curve_table,
    insert,
    latency_table,
    summary,
    tables,
    to_markdown,
)
from uellm_profiler.neural.adapter import read_adapter

DOCS = Path(__file__).resolve().parents[1] / "docs"
FOLDER = DOCS / "predictor"
CURVES = ("layers", "prompts")
PLOTTED = 3
"""Predictors in the plot of reliability."""


def draw_card(card: dict[str, Any]) -> None:
    """Plots of the first section, which is that of most prompts."""
    examples = read_evaluation(None).test
    rows = decodings(examples)[0][1]
    chosen = [examples[i] for i in rows]
    outcomes = Outcomes.of(chosen)
    first = read_predictions(CARD / PREDICTIONS, [one.label.key for one in chosen])[0]
    pit = card["sections"][0]["pit"]
    points = Forecasts.of(first.distributions, outcomes).p50
    plots = {
        "scatter": scatter(first.name, points, outcomes.tokens, outcomes.cut),
        "pit": pit_histogram(first.name, pit[first.name]),
        "reliability": reliability(dict(list(pit.items())[:PLOTTED])),
    }
    for name, svg in plots.items():
        (FOLDER / f"{name}.svg").write_text(svg, "utf-8")


def draw_curves() -> list[Table]:
    """A plot each, and the tables."""
    drawn = []
    for name in CURVES:
        curve = read_curve(FOLDER / f"{name}.json")
        (FOLDER / f"{name}.svg").write_text(curve_plot(curve, logarithmic=True), "utf-8")
        drawn.append(curve_table(curve.title, curve.x_title, curve.points))
    return drawn


def main() -> None:
    """Copy, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, help="folder with layers.json and prompts.json")
    parser.add_argument("--latency", type=Path, help="file of timings")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if arguments.curves:
        for name in CURVES:
            shutil.copy(arguments.curves / f"{name}.json", FOLDER)
    if arguments.latency:
        shutil.copy(arguments.latency, FOLDER / "latency.json")

    card = json.loads((CARD / CARD_FILE).read_text("utf-8"))
    draw_card(card)
    for kind in ("lora", "fast"):
        folder = shipped_adapter(kind)
        (folder / "README.md").write_text(model_card(read_adapter(folder)[0], card), "utf-8")
    page = DOCS / "predictor.md"
    text = insert(page.read_text("utf-8"), "summary", to_markdown([summary(card)]))
    text = insert(text, "curves", to_markdown(draw_curves()))
    timings = json.loads((FOLDER / "latency.json").read_text("utf-8"))
    text = insert(text, "latency", to_markdown([latency_table(timings)]))
    page.write_text(text, "utf-8")
    head = "# Report card of the predictors\n\nHow it is made and what it means: [predictor.md](../predictor.md).\n\n"
    (FOLDER / "card.md").write_text(head + to_markdown(tables(card)), "utf-8")


if __name__ == "__main__":
    main()
