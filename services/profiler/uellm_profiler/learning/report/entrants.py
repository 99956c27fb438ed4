"""What takes part in the card, and a file of predictions that makes the card the same on every processor.

A neural network gives slightly other numbers on another processor, and the baselines learn from texts that are not
committed. So the card is computed from committed predictions, rounded; a predictor that runs live must agree with its
own within `TOLERANCE`, and then the committed ones count.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from uellm.cost.lengths import LengthDistribution

TOLERANCE = 2e-3
"""Largest difference of two distribution functions at an edge that counts as the same prediction. Rounding alone makes
1e-5; another processor about as much."""
_STEPS = 65_535
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entrant:
    """One predictor with its predictions, one for each row."""

    name: str
    description: str
    distributions: Sequence[LengthDistribution]
    """Issued with the row's limit as the caller's."""
    parameters: int | None
    """Numbers that it computes with, frozen ones included; None where it makes no sense."""
    baseline: bool
    """Whether the others are compared with it."""
    trained_parameters: int | None = None
    """Of the parameters, those that were trained; None: all of them."""


class DisagreementError(ValueError):
    """Predictions are not those that were committed; the message says how they differ."""


def stored_form(distribution: LengthDistribution) -> LengthDistribution:
    """The distribution as it is read back from a file of predictions."""
    return _decode(distribution.edges, _encode(distribution))


def write_predictions(file: Path, parts: Sequence[tuple[Sequence[str], Sequence[Entrant]]]) -> None:
    """Write predictions, the same bytes for the same ones.

    Each part has the rows' keys (`Label.key`) and the entrants; entrants of one name in several parts are put together.
    """
    written: dict[str, dict[str, Any]] = {}
    for keys, entrants in parts:
        for entrant in entrants:
            known = written.setdefault(entrant.name, _describe(entrant))
            known["rows"] |= {
                key: _write(known["edges"], one) for key, one in zip(keys, entrant.distributions, strict=True)
            }
    content = {"format": _FORMAT, "entrants": written}
    file.write_text(json.dumps(content, indent=0) + "\n", "utf-8")


def read_predictions(file: Path, keys: Sequence[str]) -> list[Entrant]:
    """The predictions for the rows with these keys, of every entrant that has one for the first of them.

    Raises ValueError for a file that lacks others.
    """
    content = json.loads(file.read_text("utf-8"))
    if content.get("format") != _FORMAT:
        raise ValueError(f"{file.name} has format {content.get('format')}; {_FORMAT} is needed")
    try:
        entrants = content["entrants"].items()
        return [_read(name, stored, keys) for name, stored in entrants if keys and keys[0] in stored["rows"]]
    except KeyError as error:
        raise ValueError(f"{file.name} has no prediction for {error.args[0]!r}: evaluate anew") from error


def settle(live: Entrant, committed: Entrant, tolerance: float = TOLERANCE) -> Entrant:
    """The live entrant with its committed predictions. Raises DisagreementError if they are not the same."""
    distances = [_distance(a, b) for a, b in zip(live.distributions, committed.distributions, strict=True)]
    other = sum(distance > tolerance for distance in distances)
    if other:
        raise DisagreementError(
            f"{live.name} predicts something else than was committed for {other} of {len(distances)} rows, by up to "
            f"{max(distances):.3g} of probability: evaluate and commit anew if that is meant"
        )
    return replace(live, distributions=committed.distributions)


def _distance(one: LengthDistribution, other: LengthDistribution) -> float:
    if one.edges != other.edges:
        return 1.0
    return max(abs(a - b) for a, b in zip(one.below, other.below, strict=True))


def _describe(entrant: Entrant) -> dict[str, Any]:
    return {
        "description": entrant.description,
        "parameters": entrant.parameters,
        "trained_parameters": entrant.trained_parameters,
        "baseline": entrant.baseline,
        "edges": [],
        "rows": {},
    }


def _write(known_edges: list[str], distribution: LengthDistribution) -> str:
    edges = " ".join(map(str, distribution.edges))
    if edges not in known_edges:
        known_edges.append(edges)
    return f"{known_edges.index(edges)}:{base64.b64encode(_encode(distribution)).decode()}"


def _read(name: str, stored: dict[str, Any], keys: Sequence[str]) -> Entrant:
    edges = [tuple(map(int, line.split())) for line in stored["edges"]]
    distributions = []
    for key in keys:
        number, _, packed = stored["rows"][key].partition(":")
        distributions.append(_decode(edges[int(number)], base64.b64decode(packed)))
    return Entrant(
        name,
        stored["description"],
        distributions,
        stored["parameters"],
        stored["baseline"],
        stored["trained_parameters"],
    )


def _encode(distribution: LengthDistribution) -> bytes:
    """The distribution function at each edge, the atom at the limit left out, in steps of 1/65,535, little-endian."""
    steps = (round(min(1.0, value) * _STEPS) for value in distribution.below[1:])
    return b"".join(step.to_bytes(2, "little") for step in accumulate(steps, max))


def _decode(edges: tuple[int, ...], packed: bytes) -> LengthDistribution:
    steps = [0, *(low | high << 8 for low, high in zip(packed[::2], packed[1::2], strict=True))]
    masses = [(high - low) / _STEPS for low, high in pairwise(steps)]
    atom = (_STEPS - steps[-1]) / _STEPS
    masses[-1] = (_STEPS - steps[-2]) / _STEPS
    return LengthDistribution(edges, tuple(masses), atom)
