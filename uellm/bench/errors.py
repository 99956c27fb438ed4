"""What ends a measurement."""

from __future__ import annotations


class BenchError(Exception):
    """The measurement cannot go on; the message says why and what to do."""
