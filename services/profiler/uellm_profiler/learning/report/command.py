"""What `uellm predictor evaluate` does: a card from predictions, written, or compared with the committed one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.domain.predictor import LengthModel
from uellm_profiler.learning.examples import Example, to_input
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.report.card import differences, evaluate, to_json
from uellm_profiler.learning.report.entrants import Entrant, read_predictions, settle, write_predictions
from uellm_profiler.learning.report.progress import no_progress
from uellm_profiler.learning.report.settings import Card, Settings

BATCH = 32
CARD, PREDICTIONS = "card.json", "predictions.json"


@dataclass(frozen=True, slots=True)
class Reproduced:
    """A card computed anew beside the committed one."""

    card: Card
    differences: list[str]
    """`path: committed -> now`; empty if they are the same to the digit."""


def enter(
    name: str,
    model: LengthModel,
    examples: Sequence[Example],
    *,
    parameters: int | None,
    trained_parameters: int | None,
    progress: Callable[[int, int], None] = no_progress,
) -> Entrant:
    """Run a predictor over the examples, prompts of like length together; `progress(done, total)` counts rows."""
    inputs = [to_input(example) for example in examples]
    order = sorted(range(len(inputs)), key=lambda i: (inputs[i].prompt_tokens, i))
    predicted: dict[int, LengthDistribution] = {}
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        predicted.update(zip(rows, model.predict([inputs[i] for i in rows]), strict=True))
        progress(len(predicted), len(inputs))
    distributions = [predicted[i] for i in range(len(inputs))]
    return Entrant(
        name, model.description, distributions, parameters, baseline=False, trained_parameters=trained_parameters
    )


def publish(
    folder: Path, examples: Sequence[Example], train: Sequence[Label], entrants: Sequence[Entrant], settings: Settings
) -> Card:
    """Make the card and write it with the predictions under it, both to be committed."""
    card = evaluate(examples, train, entrants, settings)
    parts = [(_keys(examples), entrants), *((_keys(one.examples), one.entrants) for one in settings.collections)]
    write_predictions(folder / PREDICTIONS, parts)
    (folder / CARD).write_text(to_json(card), "utf-8")
    return card


def reproduce(
    folder: Path, examples: Sequence[Example], train: Sequence[Label], live: Sequence[Entrant], settings: Settings
) -> Reproduced:
    """Make the committed card again: who runs live must predict what was committed, the others are taken as committed.

    A collection needs no entrants of its own, so its prompts' texts need not be there. Raises DisagreementError for a
    live predictor that predicts something else, ValueError for damaged files.
    """
    predictions = folder / PREDICTIONS
    settled = _settle(predictions, examples, live)
    collections = [
        replace(one, entrants=_settle(predictions, one.examples, one.entrants)) for one in settings.collections
    ]
    card = evaluate(examples, train, settled, replace(settings, collections=collections))
    return Reproduced(card, differences(card, json.loads((folder / CARD).read_text("utf-8"))))


def _settle(predictions: Path, examples: Sequence[Example], live: Sequence[Entrant]) -> list[Entrant]:
    committed = read_predictions(predictions, _keys(examples))
    running = {entrant.name: entrant for entrant in live}
    unknown = running.keys() - {entrant.name for entrant in committed}
    if unknown:
        raise ValueError(f"{predictions.name} has nothing of {', '.join(sorted(unknown))}: evaluate and commit anew")
    return [settle(running[one.name], one) if one.name in running else one for one in committed]


def _keys(examples: Sequence[Example]) -> list[str]:
    return [example.label.key for example in examples]
