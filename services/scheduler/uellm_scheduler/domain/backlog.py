"""How much work waits: what `Submit` computes a retry delay from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .pending import PendingTable
from .policy import EngineView


def predicted_work_seconds(table: PendingTable, engines: Iterable[EngineView], quantile: str) -> float:
    """Seconds until everything that waits and runs is done, with all engines full; 0 without engines.

    Args:
        table: what waits.
        engines: what serves, with what runs there.
        quantile: length to count with, `p50_tokens` or `p90_tokens`. A sum of many lengths is narrower than the sum of
            their p90: that figure is an upper bound.
    """
    slots = table.slots()
    tokens = float(np.maximum(table.column(quantile)[slots] - table.column("delivered_tokens")[slots], 1).sum())
    tokens_per_second = 0.0
    for engine in engines:
        tokens_per_second += full_rate(engine)
        tokens += sum(row.expected_tokens for batch in engine.running for row in batch)
    return tokens / tokens_per_second if tokens_per_second else 0.0


def full_rate(engine: EngineView) -> float:
    """Tokens per second of a full batch, each row half way through its context."""
    rows = max(1, engine.max_batch_rows)
    step = engine.step_time.step_seconds(rows, rows * engine.context_tokens / 2)
    return rows / step if step else 0.0
