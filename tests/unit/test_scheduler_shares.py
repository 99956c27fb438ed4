"""Several deployments of a model: within their shares, each batch goes where it is done first."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest
from uellm_scheduler.app.batches import Engine
from uellm_scheduler.domain.odds import POINTS
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.policy import EngineView, QueueView, RunningRow
from uellm_scheduler.domain.shares import RecentTokens, free_places
from uellm_scheduler.domain.tenants import HALF_LIFE_MS
from uellm_scheduler.policies import POLICIES

from tests.support.continuous_world import continuous_record
from tests.support.policy_world import Arrival, engine_record, pending
from uellm.cost.steps import StepTime

TOKENS = 100


def engine(name: str, share: float, step_seconds: float, *, rows: int = 4, continuous: bool = False) -> EngineView:
    step = StepTime(step_seconds, 0, 0, 0, 0)
    record = continuous_record(rows, step=step) if continuous else engine_record(rows)
    record.step_time_prior.CopyFrom(step.to_prior("test"))
    record.name, record.traffic_share = name, share
    return Engine(record).view()


def queue(count: int, slo_seconds: float = 0.0) -> PendingTable:
    table = PendingTable()
    for number in range(count):
        table.add(pending(Arrival(f"q{number}", 1_000 + number, slo_seconds, 10, TOKENS, TOKENS, 0.01)))
    return table


def order_of(table: PendingTable, *engines: EngineView) -> list[str]:
    return [one.deployment for one in free_places(QueueView(table, table.slots(), engines))]


def served(policy: str, engines: list[EngineView], *, batches: int) -> dict[str, float]:
    """Share of the tokens that each engine made, with a queue that never ends. Batches of equal answers."""
    recent, made = RecentTokens(), dict.fromkeys((one.deployment for one in engines), 0)
    ends: list[tuple[float, str, int]] = []
    now = 1_000.0
    while sum(made.values()) < batches * 4 * TOKENS:
        table = queue(12)
        busy = {name: rows for _, name, rows in ends}
        row = RunningRow(10, 1, (float(TOKENS),) * POINTS, TOKENS)
        views = tuple(
            replace(
                one,
                free_batches=int(one.deployment not in busy),
                running=((row,) * busy[one.deployment],) if one.deployment in busy else (),
                served_tokens=recent.of(one.deployment),
            )
            for one in engines
        )
        view = QueueView(table, table.slots(), views)
        decision = POLICIES[policy].decide(view, round(now), np.random.default_rng(0))
        for plan in decision.batches:
            speed = next(one.step_time.base for one in engines if one.deployment == plan.deployment)
            heapq.heappush(ends, (now + 1_000 * speed * TOKENS, plan.deployment, len(plan.slots)))
        now, name, rows = heapq.heappop(ends)
        recent.count(name, rows * TOKENS, round(now))
        made[name] += rows * TOKENS
    return {name: tokens / sum(made.values()) for name, tokens in made.items()}


@pytest.mark.parametrize("continuous", [False, True])
def test_each_batch_goes_where_it_is_done_first(continuous: bool):
    slow, fast = (engine(*one, continuous=continuous) for one in (("slow", 1.0, 0.3), ("fast", 1.0, 0.1)))
    assert order_of(queue(20), slow, fast) == ["fast", "slow"]
    # With rows that run on the fast one, its steps take longer than the other's.
    loaded = replace(fast, cost=replace(fast.cost, step_time=StepTime(0.1, 0.1, 0, 0, 0)))
    assert order_of(queue(20), slow, loaded) == ["slow", "fast"]


def test_without_a_share_an_engine_gets_nothing():
    none = engine("none", 0.0, 0.01)
    assert order_of(queue(9), none, engine("some", 1.0, 0.1)) == ["some"]
    assert order_of(queue(9), none) == []
    for name, policy in POLICIES.items():
        table = queue(3, slo_seconds=900)
        view = QueueView(table, table.slots(), (none,))
        decision = policy.decide(view, 2_000, np.random.default_rng(0))
        assert not decision.batches, name
        assert not decision.refusals, name


def test_what_nobody_else_may_take_is_not_left_undone():
    alone = replace(engine("canary", 0.05, 0.1), served_tokens=10**6)
    assert order_of(queue(9), alone) == ["canary"]
    other = replace(engine("gone", 0.0, 0.1), served_tokens=10**6)
    assert order_of(queue(9), alone, other) == ["canary"]


def test_above_its_share_by_half_a_batch_an_engine_waits_even_if_it_is_idle():
    # A batch of 400 tokens more is a tenth of 10,200, less half of it.
    busy = replace(engine("main", 0.9, 0.1), free_batches=0, served_tokens=9_000)
    assert order_of(queue(9), busy, replace(engine("canary", 0.1, 0.1), served_tokens=800)) == ["canary"]
    assert order_of(queue(9), busy, replace(engine("canary", 0.1, 0.1), served_tokens=900)) == []


@pytest.mark.parametrize("policy", ["fifo", "slo-odbs", "saber", "uellm"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_in_the_long_run_shares_hold(policy: str, share: float):
    # The fast engine could make three quarters of all tokens.
    part = served(policy, [engine("slow", 1 - share, 0.3), engine("fast", share, 0.1)], batches=150)
    assert part["fast"] == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("policy", ["fifo", "uellm"])
def test_shares_of_one_bind_nobody(policy: str):
    part = served(policy, [engine("slow", 1.0, 0.3), engine("fast", 1.0, 0.1)], batches=100)
    assert part["fast"] == pytest.approx(0.75, abs=0.03)


def test_what_the_slow_engine_can_not_keep_waits_for_the_fast_one():
    # 100 tokens take 10 s on the fast engine, which is busy, and 30 s on the slow one; they are due after 20 s.
    table = queue(3, slo_seconds=20)
    fast = replace(engine("fast", 1.0, 0.1), free_batches=0, running=((RunningRow(9, 9, (10.0,) * POINTS, 10),),))
    view = QueueView(table, table.slots(), (fast, engine("slow", 1.0, 0.3)))
    decision = POLICIES["uellm"].decide(view, 1_100, np.random.default_rng(0))
    assert not decision.batches
    assert not decision.refusals
    assert POLICIES["fifo"].decide(view, 1_100, np.random.default_rng(0)).batches


def test_tokens_of_long_ago_count_less():
    recent = RecentTokens()
    recent.count("a", 800, 1_000)
    recent.count("b", 100, 1_000 + HALF_LIFE_MS)
    assert recent.of("a") == pytest.approx(400)
    assert recent.of("b") == 100
    assert recent.of("never") == 0
