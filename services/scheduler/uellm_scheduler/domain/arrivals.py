"""The order of arrival, kept from one decision to the next: little changes between them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ArrivalOrder:
    """Slots in use, in order of arrival (ties by slot)."""

    def __init__(self) -> None:
        self._order: NDArray[np.intp] = np.zeros(0, np.intp)
        self._changed = False

    def changed(self) -> None:
        """Note that slots came into use, or went out of it."""
        self._changed = True

    def of(self, alive: NDArray[np.bool_], arrival_ms: NDArray[np.int64]) -> NDArray[np.intp]:
        """The order now; both arrays are indexed by slot."""
        if self._changed:
            kept = self._order[alive[self._order]]
            new = alive.copy()
            new[kept] = False
            order = np.concatenate([kept, np.flatnonzero(new)])
            arrivals = arrival_ms[order]
            # A stable sort is fast where most is in order already.
            key = (arrivals - arrivals.min(initial=np.iinfo(np.int64).max)) * len(alive) + order
            self._order = order[np.argsort(key, kind="stable")]
            self._changed = False
        return self._order
