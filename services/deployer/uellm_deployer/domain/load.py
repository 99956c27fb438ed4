"""How loaded a queue is: what its owner published of it over a window of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

FEWEST_LOOKS = 5
"""In a window, else it says nothing."""
FULL_SHARE = 0.9
"""Of the looks at which there must have waited more than the engines take, for the window to count as full."""
OUTGROWN = 0.95
"""Offered load from which on a queue with full engines has outgrown them."""


@dataclass(frozen=True, slots=True)
class Look:
    """A queue at one moment."""

    time: float
    """In seconds, of a clock that never goes back."""
    waiting: int
    """Queries that wait."""
    work_seconds: float
    """Predicted time until all that waits and runs is done, with all engines full."""


@dataclass(frozen=True, slots=True)
class Load:
    """A queue over a window."""

    offered: float | None
    """Work that came over work that was done; what was refused is not in it. None: not known, since the engines were
    not full all the time, or the window is not covered."""
    relaxed: bool
    """Whether there was no moment with more waiting than the engines take."""
    waiting: int
    """Queries that waited at last."""
    work_seconds: float
    """Time that they and what runs needed at last."""

    def outgrown(self, *, before: bool) -> bool:
        """Whether the load is more than the engines can do; once it was, until the queue has relaxed for a window."""
        if self.offered is not None and self.offered >= OUTGROWN:
            return True
        return before and not self.relaxed


def load_of(looks: Sequence[Look], rows: int, window_seconds: float) -> Load | None:
    """The load over the window that ends with the last look; None without one.

    With full engines the work ahead shrinks by one second a second, plus what comes: its slope is the offered load
    less 1.

    Args:
        looks: oldest first; what is older than the window does not count, but for the last of it.
        rows: queries that the engines take at once. Full are engines for which at least as many wait.
        window_seconds: length of the window.
    """
    if not looks:
        return None
    begin = looks[-1].time - window_seconds
    first = max((at for at, look in enumerate(looks) if look.time <= begin), default=None)
    seen = looks[first or 0 :]
    full = [look.waiting >= max(1, rows) for look in seen]
    offered = None
    if first is not None and len(seen) >= FEWEST_LOOKS and sum(full) >= FULL_SHARE * len(seen):
        slope = linear_regression([look.time for look in seen], [look.work_seconds for look in seen]).slope
        offered = max(0.0, 1.0 + slope)
    return Load(offered, not any(full), seen[-1].waiting, seen[-1].work_seconds)
