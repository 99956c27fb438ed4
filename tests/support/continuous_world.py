"""A policy before one continuous engine under a virtual clock, from event to event.

Between a join and the next end the number of rows is constant, so that the time of many steps is a sum in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from uellm_scheduler.app.batches import Engine
from uellm_scheduler.domain.odds import POINTS
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.pending_query import NEVER
from uellm_scheduler.domain.policy import EngineView, Policy, QueueView, RunningRow

from tests.support.policy_world import Arrival, Served, engine_record, pending
from uellm.cost.steps import StepTime
from uellm.v1.stream_pb2 import ENGINE_KIND_CONTINUOUS, DeploymentRecord

STEP = StepTime(base=0.02, per_row=0.001, per_context_token=1e-6, prefill_per_token=2e-4, startup=0.0)
REVIEW_MS = 250
"""How often the core looks at what waits while no row is free."""


def continuous_record(rows: int = 16, *, kv_tokens: int = 10**6, step: StepTime = STEP) -> DeploymentRecord:
    record = engine_record(rows)
    record.engine_kind = ENGINE_KIND_CONTINUOUS
    record.limits.kv_page_tokens = 16
    record.limits.kv_budget_bytes = kv_tokens * record.facts.kv_bytes_per_token
    record.step_time_prior.CopyFrom(step.to_prior("test"))
    return record


def full_rate(rows: int = 16, step: StepTime = STEP, prompt: float = 65.0, mean: float = 115.0) -> float:
    """Queries a second with all rows taken by typical answers."""
    seconds = mean * step.step_seconds(rows, rows * (prompt + mean / 2)) / rows
    return 1.0 / (seconds + step.prefill_per_token * prompt)


@dataclass
class Row:
    arrival: Arrival
    quantiles: tuple[float, ...]
    limit: int
    made: int = 1
    """The prefill yields the first token."""

    def seen(self) -> RunningRow:
        due = round(self.arrival.at_ms + 1000 * self.arrival.slo_seconds) if self.arrival.slo_seconds else NEVER
        return RunningRow(
            self.arrival.prompt_tokens,
            self.made,
            self.quantiles[:POINTS],
            self.limit,
            self.quantiles[POINTS:],
            due,
        )


@dataclass
class ContinuousEngine:
    """What runs, and how far it is."""

    base: EngineView
    rows: list[Row] = field(default_factory=list)
    most_tokens: int = 0
    """Of the cache, in pages, at any time."""

    def view(self) -> EngineView:
        free = int(len(self.rows) < self.base.max_batch_rows)
        return replace(self.base, free_batches=free, running=(tuple(row.seen() for row in self.rows),))

    def steps_until_end(self) -> int:
        return min(row.arrival.tokens - row.made for row in self.rows)

    def seconds(self, steps: int) -> float:
        step, count = self.base.step_time, len(self.rows)
        context = sum(row.arrival.prompt_tokens + row.made for row in self.rows)
        tokens = steps * context + count * steps * (steps - 1) / 2
        return steps * (step.base + step.per_row * count) + step.per_context_token * tokens

    def steps_within(self, seconds: float) -> int:
        """Fewest steps that take at least so long, at most until a row ends."""
        low, high = 0, self.steps_until_end()
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.seconds(middle) >= seconds else (middle + 1, high)
        return low

    def advance(self, steps: int) -> list[Row]:
        """Returns the rows that ended."""
        for row in self.rows:
            row.made += steps
        page = self.base.page_tokens
        held = sum(-(-(row.arrival.prompt_tokens + row.made) // page) * page for row in self.rows)
        self.most_tokens = max(self.most_tokens, held)
        ended = [row for row in self.rows if row.made >= row.arrival.tokens]
        self.rows = [row for row in self.rows if row.made < row.arrival.tokens]
        return ended


def serve_continuous(policy: Policy, arrivals: list[Arrival], record: DeploymentRecord) -> Served:
    """Serve them all."""
    table, served = PendingTable(), Served()
    truth = {one.full_name: one for one in arrivals}
    engine = ContinuousEngine(Engine(record).view())
    generator = np.random.default_rng(0)
    now, at, reviewed = float(arrivals[0].at_ms), 0, 0.0
    while at < len(arrivals) or len(table) or engine.rows:
        while at < len(arrivals) and arrivals[at].at_ms <= now:
            table.add(pending(arrivals[at]))
            at += 1
        view = engine.view()
        if len(table) and (view.free_rows or now - reviewed >= REVIEW_MS):
            reviewed = now
            decision = policy.decide(QueueView(table, table.slots(), (view,)), math.ceil(now), generator)
            for name in [table.at(refusal.slot).name for refusal in decision.refusals]:
                table.remove(name)
                served.refused += 1
            for plan in decision.batches:
                assert len(plan.slots) <= view.free_rows
                joined = [truth[table.at(slot).name] for slot in plan.slots]
                for one in joined:
                    entry = table.remove(one.full_name)
                    assert entry is not None
                    needs = entry.needs
                    engine.rows.append(Row(one, (*needs.length_points, *needs.length_tail), needs.limit_tokens))
                    waited = (now - one.at_ms) / 1000
                    served.longest_wait = max(served.longest_wait, waited)
                    if not one.slo_seconds:
                        served.waits[one.name] = waited
                step = view.step_time
                now += 1000 * (step.startup + step.prefill_per_token * sum(one.prompt_tokens for one in joined))
                _end(engine.advance(0), now, served)
        coming = arrivals[at].at_ms if at < len(arrivals) else math.inf
        if engine.rows:
            wanted = coming if view.free_rows else max(now, reviewed) + REVIEW_MS
            steps = engine.steps_within((wanted - now) / 1000) if math.isfinite(wanted) else engine.steps_until_end()
            now += 1000 * engine.seconds(steps)
            _end(engine.advance(steps), now, served)
        elif math.isfinite(coming):
            now = max(now, coming)
        elif len(table):
            now += REVIEW_MS
    served.seconds = (now - 1_000) / 1000
    served.most_cached_tokens = engine.most_tokens
    return served


def _end(rows: list[Row], now: float, served: Served) -> None:
    for row in rows:
        one = row.arrival
        served.tokens += one.tokens
        if not one.slo_seconds:
            served.best_effort += 1
        elif now - one.at_ms <= 1000 * one.slo_seconds:
            served.kept += 1
            served.kept_of[one.tenant] += 1
        else:
            served.late += 1
