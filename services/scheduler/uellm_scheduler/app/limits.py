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
