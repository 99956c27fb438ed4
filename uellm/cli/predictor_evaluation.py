"""`uellm predictor evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from uellm_profiler.adapters.loader import shipped_adapter
from uellm_profiler.learning.evaluation import CARD, check_card, make_card, read_evaluation
from uellm_profiler.learning.report.card import to_json
from uellm_profiler.learning.report.tables import tables, to_rich
from uellm_profiler.neural.predictor import NeuralPredictor

from uellm.cli.output import print_line, stderr, stdout
from uellm.local.model import default_model

KINDS = ("lora", "fast")


def evaluate(
    adapters: Sequence[Path], publish: Path | None, public: Path | None, base: Path | None, *, as_json: bool
) -> int:
    """Make the card, or make the committed one again; returns the exit status."""
    evaluation = read_evaluation(public)
    predictors = [_load(folder, base) for folder in adapters or map(shipped_adapter, KINDS)]
    with _Bars() as bars:
        if publish is not None:
            publish.mkdir(parents=True, exist_ok=True)
            card, found = make_card(evaluation, publish, predictors, bars.advance), list[str]()
        else:
            reproduced = check_card(evaluation, CARD, predictors, bars.advance)
            card, found = reproduced.card, reproduced.differences
    if as_json:
        sys.stdout.write(to_json(card))
    else:
        stdout.print(to_rich(tables(card)))
    for difference in found:
        print_line(stderr, f"[bold red]differs:[/] {difference}")
    if publish is None and not found:
        print_line(stderr, "the same as the committed card, to the digit")
    return 1 if found else 0


def _load(folder: Path, base: Path | None) -> tuple[str, NeuralPredictor]:
    model = NeuralPredictor.load(folder, base or default_model())
    return f"{model.kind}/{model.version}", model


class _Bars:
    """One bar for each thing that takes long."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=stderr)
        self._tasks: dict[tuple[str, int], TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, name: str, done: int, total: int) -> None:
        """Show that so much of something is done."""
        key = (name, total)
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[key], completed=done)
