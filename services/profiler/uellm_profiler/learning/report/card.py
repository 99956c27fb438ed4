"""The report card: all that is said of the predictors, as one value that is written and compared as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Label
from uellm_profiler.learning.report.entrants import Entrant, stored_form
from uellm_profiler.learning.report.metrics import BUCKET_EDGES, METRICS, SHARE
from uellm_profiler.learning.report.resampling import LEVEL, rounded
from uellm_profiler.learning.report.sections import collection, groups, noise_floor, section, serving
from uellm_profiler.learning.report.settings import Card, Settings, decodings

FORMAT = 1


class OverlapError(ValueError):
    """A test prompt was learned from."""


def evaluate(
    examples: Sequence[Example], train: Sequence[Label], entrants: Sequence[Entrant], settings: Settings
) -> Card:
    """The card of the entrants on test examples; the same input gives the same card.

    The first section is that of the decoding with most prompts. Raises OverlapError, ValueError for predictions that do
    not fit the examples.
    """
    _check_disjoint([*examples, *(one for apart in settings.collections for one in apart.examples)], train)
    stored = [_as_stored(entrant) for entrant in entrants]
    apart = [replace(one, entrants=[_as_stored(entrant) for entrant in one.entrants]) for one in settings.collections]
    return {
        "format": FORMAT,
        "about": _about(examples, train, settings),
        "entrants": {entrant.name: _entrant(entrant) for entrant in entrants},
        "sections": [section(name, rows, examples, stored, settings) for name, rows in decodings(examples)],
        "groups": groups(examples, stored, settings),
        "noise_floor": noise_floor(examples, stored, settings),
        "collections": [collection(one, settings) for one in apart],
        "serving": serving(examples, stored, settings.load),
        "skipped": dict(settings.skipped),
    }


def to_json(card: Card) -> str:
    """The card's one written form."""
    return json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def differences(card: Card, committed: Card) -> list[str]:
    """Where two cards differ: `path: committed -> now`; empty if they are the same to the digit."""
    now, before = dict(_leaves(json.loads(to_json(card)))), dict(_leaves(committed))
    paths = [*before, *(path for path in now if path not in before)]
    missing = "(missing)"
    return [
        f"{path}: {before.get(path, missing)} -> {now.get(path, missing)}"
        for path in paths
        if before.get(path, missing) != now.get(path, missing)
    ]


def _check_disjoint(examples: Sequence[Example], train: Sequence[Label]) -> None:
    shared = {label.prompt for label in train} & {example.prompt.key for example in examples}
    if shared:
        source, name = min(shared)
        raise OverlapError(f"{len(shared)} test prompts were learned from, {source}/{name} among them")


def _as_stored(entrant: Entrant) -> Entrant:
    return replace(entrant, distributions=[stored_form(one) for one in entrant.distributions])


def _about(examples: Sequence[Example], train: Sequence[Label], settings: Settings) -> Card:
    def share(labels: Sequence[Label]) -> float | None:
        return rounded(float(np.mean([label.censored for label in labels])), SHARE) if labels else None

    test = [example.label for example in examples]
    return {
        "served_model": settings.served_model,
        "split": settings.split,
        "test_prompts": len({label.prompt for label in test}),
        "test_rows": len(test),
        "test_cut_share": share(test),
        "train_prompts": len({label.prompt for label in train}),
        "train_rows": len(train),
        "train_cut_share": share(train),
        "decodings": [name for name, _ in decodings(examples)],
        "limits_tokens": sorted({label.max_tokens for label in test}),
        "bucket_edges_tokens": list(BUCKET_EDGES),
        "interval": f"{LEVEL:.0%}, paired bootstrap over prompts, {settings.resamples:,} resamples",
        "point_prediction": "median",
        "digits": {name: metric.digits for name, metric in METRICS.items()},
    }


def _entrant(entrant: Entrant) -> Card:
    return {
        "description": entrant.description,
        "baseline": entrant.baseline,
        "parameters": entrant.parameters,
        "trained_parameters": entrant.trained_parameters,
    }


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}/{key}")]
    if isinstance(value, list) and value:
        return [leaf for i, inner in enumerate(value) for leaf in _leaves(inner, f"{path}/{i}")]
    return [(path, value)]
