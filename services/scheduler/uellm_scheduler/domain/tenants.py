"""Who has been served how much lately: what fairness between tenants is about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HALF_LIFE_MS = 300_000
"""After which served tokens count half."""


class Tenants:
    """Numbers the tenants, and counts the tokens that each was served, those of long ago less."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._served = np.zeros(16)
        self._counted_ms = 0

    @classmethod
    def as_of(cls, served: NDArray[np.float64], now_ms: int) -> Tenants:
        """Tenants that were served so many tokens, by their numbers; their names are not known."""
        tenants = cls()
        tenants._served, tenants._counted_ms = served, now_ms
        return tenants

    def number(self, tenant: str) -> int:
        """The tenant's number, from 0, in order of appearance."""
        number = self._numbers.setdefault(tenant, len(self._numbers))
        if number >= len(self._served):
            self._served = np.append(self._served, np.zeros_like(self._served))
        return number

    def serve(self, tenant: str, tokens: int, now_ms: int) -> None:
        """Count tokens of an answer."""
        self._forget(now_ms)
        self._served[self.number(tenant)] += tokens

    def served(self, now_ms: int) -> NDArray[np.float64]:
        """Tokens of each tenant, by its number."""
        self._forget(now_ms)
        return self._served

    def _forget(self, now_ms: int) -> None:
        if now_ms > self._counted_ms:
            self._served *= 0.5 ** ((now_ms - self._counted_ms) / HALF_LIFE_MS)
            self._counted_ms = now_ms


def fair_weights(served: NDArray[np.float64], tenants: NDArray[np.int32], most: float = 4.0) -> NDArray[np.float64]:
    """What an answer is worth to fairness, shape [n]: more to those that were served less than the mean of who waits.

    Args:
        served: tokens by tenant.
        tenants: whose each waiting query is, shape [n].
        most: largest weight; the least is its inverse.
    """
    tokens = served[tenants]
    mean = served[np.unique(tenants)].mean() if len(tenants) else 0.0
    if mean <= 0:
        return np.ones(len(tenants))
    return np.clip(mean / np.maximum(tokens, mean / most), 1.0 / most, most)
