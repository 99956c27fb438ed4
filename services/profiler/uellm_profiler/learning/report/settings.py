"""What a card is made of: settings, and the decodings that divide it into sections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.labels import Decoding, Label
from uellm_profiler.learning.report.entrants import Entrant
from uellm_profiler.learning.report.forecasts import Ints
from uellm_profiler.learning.report.resampling import RESAMPLES
from uellm_profiler.learning.report.serving import Load

Card = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """Test prompts of another collection, shown apart, and what was predicted for them."""

    name: str
    examples: Sequence[Example]
    entrants: Sequence[Entrant]
    """Some of the card's entrants, with one prediction for each of these examples."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the card is made, and what it can't see by itself."""

    served_model: str
    """Which model's answers they are, with tokenizer and weights."""
    split: str
    """How test and training prompts were kept apart, near-duplicates included."""
    collections: Sequence[Collection] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Sections that this card can't have, with the reason."""
    floor_labels: Sequence[Label] = ()
    """Labels of all prompts, for a noise floor from more of them than the test prompts."""
    resamples: int = RESAMPLES
    seed: int = 0
    load: Load = Load()  # noqa: RUF009  (a frozen value)


def decodings(examples: Sequence[Example]) -> list[tuple[str, Ints]]:
    """Name and rows of each decoding, that with most prompts first."""
    rows: defaultdict[Decoding, list[int]] = defaultdict(list)
    for i, example in enumerate(examples):
        rows[example.label.decoding].append(i)
    prompts = {how: len({examples[i].prompt.key for i in mine}) for how, mine in rows.items()}
    ordered = sorted(rows, key=lambda how: (-prompts[how], how.temperature, how.top_p, how.repetition_penalty))
    return [(decoding_name(how), np.array(rows[how], np.int64)) for how in ordered]


def decoding_name(decoding: Decoding) -> str:
    """`greedy, repetition penalty 1.15` and the like."""
    how = "greedy" if decoding.temperature == 0 else f"temperature {decoding.temperature:g}"
    parts = [how]
    if decoding.temperature and decoding.top_p != 1:
        parts.append(f"top-p {decoding.top_p:g}")
    if decoding.repetition_penalty != 1:
        parts.append(f"repetition penalty {decoding.repetition_penalty:g}")
    return ", ".join(parts)
