"""Bounds on what the core does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """Bounds on what the core does."""

    max_attempts: int = 5
    """Dispatches of one query."""
    retry_backoff_ms: int = 200
    """Wait before the second dispatch; doubles with each further one."""
    longest_backoff_ms: int = 30_000
    engine_stall_ms: int = 120_000
    """An engine that says nothing about a batch for this long has lost it."""
    withdraw_after_ms: int = 60_000
    """Queries of a model without any deployment for this long are withdrawn."""
    decisions_bytes: int = 32 * 1_048_576
    """What the flight recorder keeps of a model, the newest."""
    decisions_kept: int = 4_096
    """Entries of it, at most."""
    decisions_per_keyframe: int = 256
    """After so many decisions the recorder tells the whole table again, or after eight times as many a large one."""
    rows_per_entry: int = 8_192
    """Rows of the table that one entry of the recorder tells of."""
