"""How much work waits: what `Submit` refuses by, and computes retry delays from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

import numpy as np

from uellm.messaging.clock import timestamp
from uellm.v1.stream_pb2 import Backlog

from .overload import demand, seconds_per_token, work_of
from .pending import PendingTable
from .policy import EngineView, PolicyInfo, QueueView
from .refusals import soonest, soonest_free


def backlog_of(
    table: PendingTable, engines: Sequence[EngineView], takers: Sequence[EngineView], policy: PolicyInfo, now_ms: int
) -> Backlog:
    """The backlog to be published; `takers` are those of the engines that take new queries."""
    backlog = Backlog(
        schema_version=1,
        queued=len(table),
        running=sum(len(batch) for engine in engines for batch in engine.running),
        publish_time=timestamp(now_ms),
        policy=policy.name,
    )
    backlog.work_p50.FromTimedelta(timedelta(seconds=predicted_work_seconds(table, engines, "p50_tokens")))
    backlog.work_p90.FromTimedelta(timedelta(seconds=predicted_work_seconds(table, engines, "p90_tokens")))
    if table:
        backlog.oldest_accept_time.CopyFrom(timestamp(table.oldest_ms()))
    if policy.refuses:
        for engine in takers:
            place = backlog.deployments.add(deployment=engine.deployment)
            place.soonest_free.FromTimedelta(timedelta(seconds=soonest_free(engine)))
        work = work_of(QueueView(table, table.slots(), tuple(takers)), now_ms, soonest(takers))
        backlog.demand.extend(point.to_proto() for point in demand(work))
        backlog.seconds_per_token = seconds_per_token(takers)
    return backlog


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
