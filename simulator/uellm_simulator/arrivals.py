"""Arrivals drawn at random, deterministic by seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import exp, log
from typing import Protocol

from uellm_simulator.workload import Arrival


class Gaps(Protocol):
    """Times between arrivals, in multiples of their mean."""

    def draw(self, random: random.Random) -> Iterator[float]:
        """Endless."""


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent gaps with a coefficient of variation; 1: a Poisson process."""

    variation: float = 1.0

    def draw(self, random: random.Random) -> Iterator[float]:
        """Endless."""
        shape = 1.0 / self.variation**2
        while True:
            yield random.gammavariate(shape, 1.0 / shape)


@dataclass(frozen=True, slots=True)
class OnOff:
    """A Poisson process that is on and off in turns, each for an exponential time."""

    on_share: float = 0.3
    """Of the time; while on it is as much quicker."""
    burst: float = 20.0
    """Mean arrivals of a burst."""

    def draw(self, random: random.Random) -> Iterator[float]:
        """Endless."""
        on = self.burst  # mean length of a burst, in mean gaps of the whole
        off = on * (1 - self.on_share) / self.on_share
        waited, left = 0.0, random.expovariate(1 / (on * self.on_share))
        off *= self.on_share
        while True:
            gap = random.expovariate(1 / self.on_share)
            while gap > left:
                gap -= left
                waited += left + random.expovariate(1 / off)
                left = random.expovariate(1 / (on * self.on_share))
            left -= gap
            yield waited + gap
            waited = 0.0


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths in tokens, cut to a range."""

    median: float
    spread: float
    least: int = 1
    most: int = 8_192

    def draw(self, random: random.Random) -> int:
        """One of them."""
        return max(self.least, min(self.most, round(exp(random.gauss(log(self.median), self.spread)))))


@dataclass(frozen=True, slots=True)
class Generated:
    """Independent requests at a rate."""

    gaps: Gaps
    prompts: LogNormal
    answers: LogNormal
    tenants: int = 1

    def take(self, count: int, rate: float, seed: int) -> list[Arrival]:
        """So many, `rate` a second."""
        times, draw = random.Random(f"times/{seed}"), random.Random(f"lengths/{seed}")
        now, made = 0.0, []
        for gap in islice(self.gaps.draw(times), count):
            now += gap / rate
            tenant = f"t{draw.randrange(self.tenants)}"
            made.append(Arrival(now, self.prompts.draw(draw), self.answers.draw(draw), tenant))
        return made
