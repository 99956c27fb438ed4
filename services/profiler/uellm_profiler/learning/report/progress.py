"""For callers that do not want to know how far something is."""

from __future__ import annotations


def no_progress(*_: object) -> None:
    """Say nothing."""
