"""A policy before one static engine under a virtual clock: seeded arrivals, true lengths, what became of each query."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from uellm_scheduler.app.batches import Engine
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.pending_query import PendingQuery
from uellm_scheduler.domain.policy import Policy, QueueView

from tests.support.world import deployment
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.steps import StepTime, batch_work
from uellm.v1.query_pb2 import ResourceProfile
from uellm.v1.stream_pb2 import DeploymentRecord, ProfiledQuery

STEP = StepTime(base=0.06, per_row=0.005, per_context_token=2e-6, prefill_per_token=2e-4, startup=0.05)
LIMIT = 512


@dataclass(frozen=True)
class Arrival:
    """One query, and what nobody knows: its length."""

    name: str
    at_ms: int
    slo_seconds: float
    """0: best effort."""
    prompt_tokens: int
    tokens: int
    median: float
    """Predicted, of a log-normal with this spread."""
    spread: float
    tenant: str = "t"

    @property
    def full_name(self) -> str:
        return f"tenants/{self.tenant}/models/tiny/queries/{self.name}"


@dataclass
class Served:
    """What became of the queries."""

    kept: int = 0
    late: int = 0
    refused: int = 0
    best_effort: int = 0
    tokens: int = 0
    seconds: float = 0.0
    longest_wait: float = 0.0
    kept_of: Counter[str] = field(default_factory=Counter)
    """By tenant."""
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds in the queue, of best effort."""
    most_cached_tokens: int = 0
    """Of a continuous engine's cache, at any time."""


def engine_record(rows: int = 8) -> DeploymentRecord:
    record = deployment(rows=rows)
    record.step_time_prior.CopyFrom(STEP.to_prior("test"))
    record.limits.context_tokens = 2_048
    return record


def workload(
    seed: int,
    count: int,
    load: float,
    *,
    rows: int = 8,
    noise: float = 0.0,
    slo: float = 1.0,
    step: StepTime = STEP,
    queries_per_second: float = 0.0,
) -> list[Arrival]:
    """Poisson arrivals at a share of what full batches of typical answers take, or of a given rate; three classes of
    deadlines.

    A prompt fixes the median of its answers' lengths; the answer spreads around it by 0.45 in the logarithm. The
    predicted median is off by a factor e^N(0, noise), which the prediction does not know.
    """
    draw = random.Random(seed)
    made: list[Arrival] = []
    at = 1_000.0
    mean = 120.0
    # The longest of eight is twice the mean.
    capacity = queries_per_second or rows / (mean * STEP.step_seconds(rows, rows * 100) * 2.0)
    for number in range(count):
        at += 1000 * draw.expovariate(load * capacity)
        median = min(LIMIT, math.exp(draw.gauss(math.log(85), 0.75)))
        tokens = max(1, min(LIMIT, round(median * math.exp(draw.gauss(0, 0.45)))))
        told = median * math.exp(draw.gauss(0, noise)) if noise else median
        kind = draw.random()
        # Slack in multiples of what the answer takes by itself: interactive, standard, relaxed, none.
        alone = step.alone_seconds(40, median)
        seconds = slo * (10 + 2 * alone if kind < 0.3 else 30 + 3 * alone if kind < 0.7 else 90 + 5 * alone)
        if kind > 0.9:
            seconds = 0.0
        made.append(Arrival(f"q{number}", round(at), seconds, draw.randint(10, 120), tokens, told, 0.5))
    return made


def pending(arrival: Arrival) -> PendingQuery:
    length = LengthDistribution.from_cdf(log_normal_cdf(math.log(arrival.median), arrival.spread), LIMIT)
    profile = ResourceProfile(prompt_tokens=arrival.prompt_tokens, output_length=length.to_proto())
    entry = ProfiledQuery(name=arrival.full_name, profile=profile)
    if arrival.slo_seconds:
        entry.slo.completion.FromMilliseconds(round(1000 * arrival.slo_seconds))
    return PendingQuery.of(entry.name, f"{arrival.at_ms}-0", entry)


def serve(policy: Policy, arrivals: list[Arrival], record: DeploymentRecord) -> Served:
    """Serve them all; static batches, one at a time, whose rows leave as they end."""
    table, served = PendingTable(), Served()
    truth = {one.full_name: one for one in arrivals}
    engine = Engine(record).view()
    generator = np.random.default_rng(0)
    coming = [(one.at_ms, number) for number, one in enumerate(arrivals)]
    heapq.heapify(coming)
    now = free_at = 0
    while coming or len(table):
        if not len(table):
            now = max(now, coming[0][0])
        now = max(now, free_at)
        while coming and coming[0][0] <= now:
            table.add(pending(arrivals[heapq.heappop(coming)[1]]))
        view = QueueView(table, table.slots(), (engine,))
        decision = policy.decide(view, now, generator)
        for refusal in decision.refusals:
            table.remove(table.at(refusal.slot).name)
            served.refused += 1
        if not decision.batches:
            continue
        rows = [truth[table.at(slot).name] for slot in decision.batches[0].slots]
        for name in [table.at(slot).name for slot in decision.batches[0].slots]:
            table.remove(name)
        for row in rows:
            table.tenants.serve(row.tenant, row.tokens, now)
        free_at = now + round(1000 * run(engine.step_time, rows, now, served))
    served.seconds = (free_at - 1_000) / 1000
    return served


def run(step: StepTime, rows: list[Arrival], now_ms: int, served: Served) -> float:
    """Run a batch; returns its seconds."""
    longest = 0.0
    for row in rows:
        # Until it ends, each row meets the others with at most its own length.
        work = batch_work(
            [one.prompt_tokens for one in rows], [min(one.tokens, row.tokens) for one in rows], padded=True
        )
        seconds = step.seconds(work)
        longest = max(longest, seconds)
        waited = (now_ms - row.at_ms) / 1000
        served.tokens += row.tokens
        served.longest_wait = max(served.longest_wait, waited)
        if not row.slo_seconds:
            served.best_effort += 1
            served.waits[row.name] = waited
        elif waited + seconds <= row.slo_seconds:
            served.kept += 1
            served.kept_of[row.tenant] += 1
        else:
            served.late += 1
    return longest
