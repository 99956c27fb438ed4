"""What a queue's deadlines speak for of its engines' time. Written by the scheduler, read at `Submit`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uellm.v1 import stream_pb2

LEAST_SURE = 10.0
"""How much likelier to be missed than its confidence allows the least sure query may be that is served: most are surer
by far. From simulation: those that are served then miss about as many as they may."""


def least_chance(confidence: ArrayLike) -> NDArray[np.float64]:
    """With at most this chance to be kept, alone and at once, a deadline counts as lost; shape of `confidence`.

    As surely lost as it was to be surely kept; of the very sure, what is missed too often.
    """
    miss = 1.0 - np.asarray(confidence, np.float64)
    return np.maximum(np.minimum(miss, 1.0 - miss), 1.0 - LEAST_SURE * miss)


@dataclass(frozen=True, slots=True)
class DemandPoint:
    """One deadline; in seconds, from when the curve was made."""

    due: float
    slack: float
    """Engines' time until then that no query speaks for that is due until then; below 0 it is too much."""
    longest: float
    """Engines' time that the longest of these queries needs."""

    @classmethod
    def from_proto(cls, message: stream_pb2.DemandPoint) -> DemandPoint:
        """As it was published."""
        return cls(message.due.ToNanoseconds() / 1e9, message.slack_seconds, message.longest_seconds)

    def to_proto(self) -> stream_pb2.DemandPoint:
        """To be published."""
        message = stream_pb2.DemandPoint(slack_seconds=self.slack, longest_seconds=self.longest)
        message.due.FromMilliseconds(round(1000 * self.due))
        return message


def lacking_seconds(points: Iterable[DemandPoint], due: float, seconds: float) -> float:
    """What a query lacks that comes now, 0 where it lacks nothing: seconds of the engines' time.

    It lacks where it does not fit and is longer than all that are due until there: by the rule of Moore and Hodgson it
    is then the one to go.

    Args:
        points: the demand curve.
        due: seconds until its deadline.
        seconds: engines' time that it needs.
    """
    return shortfall((point for point in points if seconds > point.longest), due, seconds)


def shortfall(points: Iterable[DemandPoint], due: float, seconds: float) -> float:
    """By how many seconds a query that comes now does not fit, whoever would have to go."""
    return max(0.0, *(seconds - point.slack - max(0.0, due - point.due) for point in points), 0.0)
