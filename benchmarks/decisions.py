"""Measures one decision of a policy over many pending queries, and what a pending query takes in memory.

The queries are as the profiler makes them, 32 buckets a length; one of ten is best effort. Before each decision one
more has come, as it happens live. Run with `.venv/bin/python benchmarks/decisions.py`. Figures go to stdout as
JSON; they depend on the machine, so no test asserts them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import replace

import numpy as np
from uellm_scheduler.app.batches import Engine
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.pending_query import NEVER, PendingQuery
from uellm_scheduler.domain.policy import EngineView, QueueView, RunningRow
from uellm_scheduler.policies import POLICIES

from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.steps import StepTime
from uellm.v1.query_pb2 import Hints, ResourceProfile
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_CONTINUOUS,
    ENGINE_KIND_STATIC,
    DeploymentRecord,
    EngineKind,
    EngineLimits,
    ModelFacts,
    ProfiledQuery,
)

NOW_MS = 1_700_000_600_000
LIMIT = 1_024
STEP = StepTime(base=0.02, per_row=0.001, per_context_token=1e-6, prefill_per_token=2e-4, startup=0.0)


def queued(number: int, draw: random.Random) -> tuple[str, str, bytes]:
    """One query that arrived within the last ten minutes: its name, its entry's id, and the entry."""
    length = LengthDistribution.from_cdf(log_normal_cdf(draw.gauss(math.log(100), 0.7), draw.uniform(0.4, 0.9)), LIMIT)
    profile = ResourceProfile(
        prompt_tokens=draw.randint(10, 500),
        output_length=length.to_proto(),
        kv_cache_bytes_p90=draw.randint(10**6, 10**8),
        kv_cache_bytes_limit=10**8,
        predictor_version="smollm2-hazard/1",
        calibration_version=f"{NOW_MS - number}-0",
        cost_model_version="fit/1234",
        hints=Hints(osl=round(length.mean)),
        batch_rows=64,
        cost_model_error=0.03,
        cost_model_interval=0.1,
        uncalibrated_probabilities=[*length.probabilities, length.limit_probability],
    )
    for duration in (
        profile.service_time_p50,
        profile.service_time_p90,
        profile.first_token_time,
        profile.batch_service_time_p50,
        profile.batch_service_time_p90,
    ):
        duration.FromMicroseconds(draw.randint(10**5, 10**7))
    name = f"tenants/tenant-{number % 20}/models/smollm2/queries/{draw.getrandbits(128):032x}"
    trace = f"00-{draw.getrandbits(128):032x}-{draw.getrandbits(64):016x}-01"
    entry = ProfiledQuery(schema_version=1, trace_parent=trace, name=name, profile=profile)
    if number % 10:
        entry.slo.completion.FromMilliseconds(draw.randint(600_000, 1_200_000))
        entry.slo.confidence = 0.9
    arrival = NOW_MS - draw.randint(0, 600_000)
    return name, f"{arrival}-{number % 7}", entry.SerializeToString()


def pending(number: int, draw: random.Random) -> PendingQuery:
    """The same as it waits."""
    name, entry_id, data = queued(number, draw)
    return PendingQuery.of(name, entry_id, ProfiledQuery.FromString(data))


def engine(kind: EngineKind, rows: int, free: int) -> EngineView:
    """An engine with `free` free places; a static one has its only batch free. Its memory is what decides."""
    record = DeploymentRecord(
        name="deployments/bench",
        state=DEPLOYMENT_STATE_READY,
        engine_kind=kind,
        facts=ModelFacts(kv_bytes_per_token=46_080),
        limits=EngineLimits(
            context_tokens=4_096,
            max_batch_rows=rows,
            max_concurrent_batches=1,
            # Of a continuous engine what its rows take on average, and a third more.
            kv_budget_bytes=46_080 * rows * (500 if kind == ENGINE_KIND_CONTINUOUS else 1_600),
            kv_page_tokens=16,
        ),
        step_time_prior=STEP.to_prior("bench"),
        traffic_share=1.0,
    )
    view = Engine(record).view()
    if kind == ENGINE_KIND_STATIC:
        return view
    draw = random.Random(1)
    running = []
    for number in range(rows - free):
        query = pending(number, draw)
        needs, due = query.needs, NOW_MS + 60_000 if number % 10 else NEVER
        lengths = needs.length_points, LIMIT, needs.length_tail
        running.append(RunningRow(needs.prompt_tokens, draw.randint(1, 80), *lengths, due))
    return replace(view, running=(tuple(running),))


def decision_ms(
    policy: str, table: PendingTable, view: EngineView, rounds: int, spare: list[PendingQuery]
) -> list[float]:
    """Milliseconds of each of so many decisions, the order of what waits included.

    What is refused at once leaves the table first: that happens once.
    """
    taken = []
    generator = np.random.default_rng(0)
    while refusals := POLICIES[policy].decide(QueueView(table, table.slots(), (view,)), NOW_MS, generator).refusals:
        for plan in refusals:
            table.remove(table.name_at(plan.slot))
    for number in range(rounds):
        table.add(spare[number % len(spare)])
        start = time.perf_counter()
        POLICIES[policy].decide(QueueView(table, table.slots(), (view,)), NOW_MS + number, generator)
        taken.append(1000 * (time.perf_counter() - start))
        table.remove(spare[number % len(spare)].name)
    return taken


def bytes_per_query(count: int) -> dict[str, float]:
    """Memory of a table of queries, names included."""
    draw = random.Random(2)
    entries = [queued(number, draw) for number in range(count)]
    before = resident_bytes()
    table = PendingTable()
    for name, entry_id, data in entries:
        # Names that are the table's own. What was made so far stays, so that no freed memory hides what is needed.
        table.add(PendingQuery.of(name[:9] + name[9:], entry_id, ProfiledQuery.FromString(data)))
    used = (resident_bytes() - before) / count
    serialized = sum(len(data) for *_, data in entries) / count
    return {"queries": count, "serialized_bytes": serialized, "resident_bytes": used}


def resident_bytes() -> int:
    """Of this process."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="uellm", choices=sorted(POLICIES))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    results: dict[str, object] = {"policy": options.policy, "memory": bytes_per_query(20_000)}
    engines = {
        "static, 16 rows free": engine(ENGINE_KIND_STATIC, 16, 16),
        "continuous, 1 of 64 rows free": engine(ENGINE_KIND_CONTINUOUS, 64, 1),
        "continuous, 64 of 64 rows free": engine(ENGINE_KIND_CONTINUOUS, 64, 64),
        "continuous, 4 of 256 rows free": engine(ENGINE_KIND_CONTINUOUS, 256, 4),
    }
    draw = random.Random(3)
    for size in options.sizes:
        table = PendingTable()
        for number in range(size):
            table.add(pending(number, draw))
        spare = [pending(size + number, draw) for number in range(64)]
        for label, view in engines.items():
            taken = decision_ms(options.policy, table, view, options.rounds, spare)
            results[f"{size} pending, {label}"] = {
                f"p{quantile}_ms": round(float(np.percentile(taken, quantile)), 3) for quantile in (50, 99)
            }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
