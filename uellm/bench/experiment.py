"""The runs: every server gets the same arrivals in each round, in an order that changes from round to round."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.json_format import MessageToDict
from uellm_simulator.metrics import Window, served_per_second

from uellm.bench.errors import BenchError
from uellm.bench.morphling import Tuning
from uellm.bench.processes import Processes
from uellm.bench.records import Record
from uellm.bench.runs import Ask, Run, measured, serve
from uellm.bench.workload import Planned, Workload
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED
from uellm.v1.stream_pb2 import DeploymentRecord

CAPACITY_BATCHES = 4
"""A burst of so many times what the engines take at once tells what they can do."""


class Asks(Protocol):
    """Whom to ask."""

    async def ask(self, name: str) -> Ask:
        """How to ask this server, which serves from now on."""


class Watcher(Protocol):
    """Is told how it goes."""

    def step(self, text: str, queries: int) -> None:
        """So many queries of something are about to be sent."""

    def ended(self) -> None:
        """One of them has ended."""

    def run(self, run: Run) -> None:
        """A run is complete."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    servers: tuple[str, ...]
    """Policies and peers; the others are compared with the first."""
    loads: tuple[float, ...]
    """Arrivals as shares of the measured capacity; empty: at `rate`."""
    rate: float
    """Arrivals a second; 0: by load."""
    rounds: int
    queries: int
    """Of a run, that count."""
    warm_up: int
    """Queries before them that do not."""
    seed: int

    @property
    def count(self) -> int:
        """Queries of a run."""
        return self.warm_up + self.queries

    def turns(self) -> Iterator[tuple[int, float, str]]:
        """Round, load and server of each run, in order."""
        for number, load in itertools.product(range(self.rounds), self.loads or (0.0,)):
            first = number % len(self.servers)
            for server in self.servers[first:] + self.servers[:first]:
                yield number, load, server


@dataclass(slots=True)
class Results:
    """What was measured so far."""

    plan: Plan
    deployments: Sequence[DeploymentRecord] = ()
    capacity: float = 0.0
    """Queries a second; 0: not measured."""
    tuning: Tuning | None = None
    """Of Morphling."""
    runs: list[Run] = field(default_factory=list)
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain, with every query of every run."""
        return {
            "version": 1,
            "machine": {"architecture": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
            "plan": {name: getattr(self.plan, name) for name in Plan.__slots__},
            "deployments": [MessageToDict(one, preserving_proto_field_name=True) for one in self.deployments],
            "capacity_per_second": self.capacity,
            "morphling": None if self.tuning is None else self.tuning.to_json(),
            "interrupted": self.interrupted,
            "runs": [run.to_json() for run in self.runs],
        }


async def measure(
    results: Results, servers: Asks, workload: Workload, processes: Processes, rows: int, watcher: Watcher
) -> None:
    """All runs of the plan; what is complete stands in `results` when this is cancelled.

    Raises BenchError if a server serves nothing.
    """
    plan = results.plan
    if plan.loads:
        results.capacity = await measure_capacity(servers, workload.burst(CAPACITY_BATCHES * rows, plan.seed), watcher)
    for number, load, server in plan.turns():
        rate = load * results.capacity or plan.rate
        arrivals = workload.take(plan.count, rate, plan.seed + number)
        ask = await servers.ask(server)
        watcher.step(_title(plan, number, load, server), len(arrivals))
        records, seconds, processor = await measured(arrivals, ask, processes, _told(watcher))
        window = Window(plan.warm_up, plan.queries)
        run = Run(server, load, number, _rate(arrivals), seconds, records, window, processor)
        results.runs.append(run)
        watcher.run(run)


async def measure_capacity(servers: Asks, burst: Sequence[Planned], watcher: Watcher) -> float:
    """Queries a second that full engines serve, first come, first served."""
    ask = await servers.ask("fifo")
    watcher.step("capacity", len(burst))
    records, _ = await serve(burst, ask, _told(watcher))
    served = [record for record in records if record.state == QUERY_STATE_COMPLETED]
    if len(served) < len(records):
        said = next(record.reason for record in records if record not in served)
        raise BenchError(
            f"the capacity can't be measured: {len(records) - len(served)} of {len(records)} queries were not served "
            f"({said}); say --rate"
        )
    return served_per_second([record.fate() for record in records])


def _title(plan: Plan, number: int, load: float, server: str) -> str:
    pace = f"load {load:g}" if load else f"{plan.rate:g} queries/s"
    return f"round {number + 1} of {plan.rounds}, {pace}: {server}"


def _told(watcher: Watcher) -> Any:
    def ended(_: Record) -> None:
        watcher.ended()

    return ended


def _rate(arrivals: Sequence[Planned]) -> float:
    span = arrivals[-1].seconds - arrivals[0].seconds
    return (len(arrivals) - 1) / span
