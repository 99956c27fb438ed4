"""Shares of a queue's traffic."""

from __future__ import annotations

from collections.abc import Mapping

TOLERANCE = 1e-6
"""By which shares may miss a sum of 1."""


def whole(shares: Mapping[str, float]) -> dict[str, float]:
    """The same proportions with a sum of 1; all alike where nobody has any."""
    total = sum(shares.values())
    if abs(total - 1) <= TOLERANCE:
        return dict(shares)
    return {name: share / total if total > 0 else 1 / len(shares) for name, share in shares.items()}
