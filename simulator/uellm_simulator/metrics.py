"""What a run amounts to. Shares are of the requests *submitted*; refused ones count as not kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uellm_simulator.fates import Fate

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Window:
    """The requests that count: those that arrived after the warm-up, so many at most."""

    warm_up: int = 0
    count: int | None = None

    def of(self, fates: Sequence[Fate]) -> Sequence[Fate]:
        """Those of a run, which are in order of arrival."""
        return fates[self.warm_up : None if self.count is None else self.warm_up + self.count]


@dataclass(frozen=True, slots=True)
class Share:
    """What became of some requests, as shares of them."""

    requests: int
    in_time: float
    late: float
    refused: float

    @classmethod
    def of(cls, fates: Sequence[Fate]) -> Share:
        """Of those that had an objective; without one there is nothing to keep."""
        count = len(fates) or 1
        return cls(
            len(fates),
            sum(fate.in_time for fate in fates) / count,
            sum(fate.late for fate in fates) / count,
            sum(fate.refused for fate in fates) / count,
        )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of one run. Times in seconds; quantiles are at `QUANTILES`, of completed requests."""

    requests: int
    seconds: float
    """From the first arrival to the last: what came is served to its end, and counts to the time in which it came."""
    goodput: float
    """Answers in time a second, those without an objective left out."""
    useful_tokens: float
    """A second, of answers in time or without an objective."""
    tokens: float
    """A second, all that were delivered."""
    attainment: Share
    by_class: dict[str, Share]
    miss_rate: float
    """Late answers, of those dispatched with an objective."""
    latency: tuple[float, ...]
    first_token: tuple[float, ...]
    longest_wait: float
    refused_after: float
    """Median time from arrival to refusal, as a share of the time there was; 0: at once, or none."""
    jain: float
    """Fairness between tenants of useful tokens, as shares of what each asked for; 1: equal."""
    utilisation: float
    """Share of the time that engines computed."""

    def to_json(self) -> dict[str, Any]:
        """Plain."""
        return asdict(self)


def metrics_of(fates: Sequence[Fate], utilisation: float) -> Metrics:
    """Sum up a run, or a window of it."""
    if not fates:
        raise ValueError("no request falls into the window")
    with_objective = [fate for fate in fates if fate.has_objective]
    useful = [fate for fate in fates if fate.in_time]
    completed = [fate for fate in fates if fate.completed]
    seconds = fates[-1].request.arrival.seconds - fates[0].request.arrival.seconds or 1.0
    dispatched = [fate for fate in with_objective if fate.completed]
    return Metrics(
        requests=len(fates),
        seconds=seconds,
        goodput=sum(fate.in_time for fate in with_objective) / seconds,
        useful_tokens=sum(fate.output_tokens for fate in useful) / seconds,
        tokens=sum(fate.output_tokens for fate in completed) / seconds,
        attainment=Share.of(with_objective),
        by_class=_by_class(with_objective),
        miss_rate=sum(fate.late for fate in dispatched) / (len(dispatched) or 1),
        latency=_quantiles(fate.latency for fate in completed),
        first_token=_quantiles(fate.first_token for fate in completed),
        longest_wait=max((fate.wait for fate in completed), default=0.0),
        refused_after=_refused_after(with_objective),
        jain=_jain(fates),
        utilisation=utilisation,
    )


def served_per_second(fates: Sequence[Fate]) -> float:
    """Capacity, from requests that were all there at once, served first come, first served.

    Counted until the queue is empty, for the last batches are not full.
    """
    emptied = max(fate.dispatch_seconds for fate in fates)
    served = sum(fate.finish_seconds <= emptied for fate in fates)
    return served / emptied if served else len(fates) / max(fate.finish_seconds for fate in fates)


def _by_class(fates: Iterable[Fate]) -> dict[str, Share]:
    classes: dict[str, list[Fate]] = defaultdict(list)
    for fate in fates:
        classes[fate.request.slo_class].append(fate)
    return {name: Share.of(some) for name, some in sorted(classes.items())}


def _quantiles(values: Iterable[float]) -> tuple[float, ...]:
    found = list(values)
    return tuple(float(value) for value in np.quantile(found, QUANTILES)) if found else ()


def _refused_after(fates: Iterable[Fate]) -> float:
    shares = [
        fate.latency / (fate.request.completion_seconds or fate.request.first_token_seconds)
        for fate in fates
        if fate.refused
    ]
    return float(np.median(shares)) if shares else 0.0


def _jain(fates: Sequence[Fate]) -> float:
    asked: dict[str, int] = defaultdict(int)
    useful: dict[str, int] = defaultdict(int)
    for fate in fates:
        asked[fate.request.tenant] += fate.request.arrival.output_tokens
        useful[fate.request.tenant] += fate.output_tokens if fate.in_time else 0
    served = [useful[tenant] / tokens for tenant, tokens in asked.items()]
    squares = sum(share * share for share in served)
    return sum(served) ** 2 / (len(served) * squares) if squares else 1.0
