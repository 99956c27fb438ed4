"""Sends a workload to a server and notes, by the client's clock, what came when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from uellm_simulator.metrics import Metrics, Window, metrics_of

from uellm.bench.errors import BenchError
from uellm.bench.processes import Processes
from uellm.bench.records import Record
from uellm.bench.workload import Planned
from uellm.v1.query_pb2 import QUERY_STATE_FAILED

Clock = Callable[[], float]
"""Seconds since the begin of the run."""
Ask = Callable[[Record, Clock], Awaitable[None]]
"""Sends a query and fills its record in, up to its end. Raises nothing that the server is to blame for."""


@dataclass(frozen=True, slots=True)
class Run:
    """A workload served once."""

    server: str
    load: float
    """Share of the capacity; 0: a rate was asked for."""
    round: int
    rate: float
    """Arrivals a second."""
    seconds: float
    """From the begin to the last end."""
    records: list[Record]
    window: Window
    processor: dict[str, float] = field(default_factory=dict)
    """Cores that each process used in the mean, of the client, the parts of the stack, and the peers' Triton."""

    @property
    def metrics(self) -> Metrics:
        """As the simulator's; of the window."""
        fates = [record.fate() for record in self.records]
        return metrics_of(self.window.of(fates), busy_share(self.records, self.seconds))

    @property
    def lag(self) -> tuple[float, float, float]:
        """Seconds from planned to sent: median, 99th percentile, most."""
        found = np.quantile([record.lag for record in self.records], (0.5, 0.99, 1.0))
        return float(found[0]), float(found[1]), float(found[2])

    @property
    def failures(self) -> list[str]:
        """Why queries failed, that counted or not."""
        return [record.reason for record in self.records if record.state == QUERY_STATE_FAILED]

    def to_json(self) -> dict[str, Any]:
        """Plain, with a line a query; those of the warm-up are not `counted`."""
        return {
            "server": self.server,
            "load": self.load,
            "round": self.round,
            "rate": self.rate,
            "seconds": self.seconds,
            "metrics": self.metrics.to_json(),
            "processor_cores": self.processor,
            "send_lag_seconds": dict(zip(("p50", "p99", "most"), self.lag, strict=True)),
            "queries": [
                {**record.to_json(), "counted": number >= self.window.warm_up}
                for number, record in enumerate(self.records)
            ],
        }


async def serve(
    workload: Sequence[Planned], ask: Ask, on_end: Callable[[Record], None] = lambda _: None
) -> tuple[list[Record], float]:
    """Send each query when its time has come, whatever became of the others; returns records and seconds it took."""
    begin = time.monotonic()
    records = [Record(planned) for planned in workload]

    def clock() -> float:
        return time.monotonic() - begin

    async def one(record: Record) -> None:
        await asyncio.sleep(record.planned.seconds - clock())
        record.sent = clock()
        await ask(record, clock)
        record.finished = clock() if record.finished is None else record.finished
        on_end(record)

    async with asyncio.TaskGroup() as tasks:
        for record in records:
            tasks.create_task(one(record))
    _check(records)
    return records, clock()


async def measured(
    workload: Sequence[Planned], ask: Ask, processes: Processes, on_end: Callable[[Record], None] = lambda _: None
) -> tuple[list[Record], float, dict[str, float]]:
    """As `serve`, with the cores that each process used."""
    before = processes.read()
    records, seconds = await serve(workload, ask, on_end)
    after = processes.read()
    return records, seconds, {name: (after[name] - before[name]) / seconds for name in after if name in before}


def busy_share(records: Sequence[Record], seconds: float) -> float:
    """Share of the time in which something was on the engine; nan where dispatches are not known."""
    known = [record for record in records if record.dispatched is not None and record.finished is not None]
    if not known:
        return float("nan")
    busy, until = 0.0, 0.0
    for start, end in sorted((record.dispatched or 0.0, record.finished or 0.0) for record in known):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / seconds


def _check(records: Sequence[Record]) -> None:
    """Nothing can be measured of a server that serves nothing."""
    failed = [record for record in records if record.state == QUERY_STATE_FAILED]
    if failed and len(failed) == len(records):
        raise BenchError(f"none of {len(records)} queries was served; the first: {failed[0].reason}")
