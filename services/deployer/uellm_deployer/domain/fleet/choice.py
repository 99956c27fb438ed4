"""Which of its candidates each copy of each member takes, so that all fit together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from uellm_deployer.domain.plan import DeploymentSpec

Chosen = tuple[tuple["Candidate", ...], ...]
"""By member, those of its copies."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to place one copy. Devices by id."""

    spec: DeploymentSpec
    """With devices and stages pinned. No two copies take candidates with equal specs: they would be one deployment."""
    needs: Mapping[str, int]
    """Bytes on each device."""
    busy: Mapping[str, float]
    """Seconds of each device for a token."""
    interval: float
    """Seconds of the engine for a token."""
    latency: float
    """Seconds of a step."""


@dataclass(frozen=True, slots=True)
class Party:
    """A member, with its share of all tokens, which its copies divide evenly."""

    candidates: Sequence[Candidate]
    share: float
    copies: int = 1

    @property
    def each(self) -> float:
        """Share of one copy."""
        return self.share / self.copies


@dataclass(frozen=True, slots=True)
class Choice:
    """What each member takes. Loads are seconds of the busiest device or engine for a token of the fleet."""

    chosen: Chosen
    load: float
    least: float
    """The least that was found: `load` exceeds it for the sake of latency."""
    bound: float
    """No choice has less; within 1e-5 of `least`, unless the search came to its limit."""


class NoRoomError(Exception):
    """The candidates do not fit together.

    Attributes:
        lacking: bytes that devices lack, by id, where that is least in sum; empty: more memory would not help, for
            candidates with different specs are too few.
        chosen: what the members take there.
    """

    def __init__(self, lacking: Mapping[str, int], chosen: Chosen) -> None:
        super().__init__(lacking)
        self.lacking, self.chosen = lacking, chosen


class UndecidedError(Exception):
    """The search came to its limit before it found anything that fits."""


def loads(parties: Sequence[Party], chosen: Chosen) -> dict[str, float]:
    """Seconds of each device for a token of the fleet."""
    times = defaultdict[str, float](float)
    for party, taken in zip(parties, chosen, strict=True):
        for candidate in taken:
            for device, seconds in candidate.busy.items():
                times[device] += party.each * seconds
    return dict(times)


def load(parties: Sequence[Party], chosen: Chosen) -> float:
    """Seconds of the busiest device or engine for a token of the fleet."""
    engines = [party.each * one.interval for party, taken in zip(parties, chosen, strict=True) for one in taken]
    return max([*loads(parties, chosen).values(), *engines])


def lacking(chosen: Chosen, free: Mapping[str, int]) -> dict[str, int]:
    """Bytes that devices lack for what was chosen."""
    return {device: size - free[device] for device, size in needs(chosen).items() if size > free[device]}


def needs(chosen: Iterable[Iterable[Candidate]]) -> dict[str, int]:
    """Bytes on each device."""
    taken = defaultdict[str, int](int)
    for candidate in (one for party in chosen for one in party):
        for device, size in candidate.needs.items():
            taken[device] += size
    return dict(taken)
