"""The simulated world: times by hand, and what is conserved whatever happens."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_scheduler.app.comparison import difference
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.app.replay import replay
from uellm_scheduler.policies import POLICIES
from uellm_scheduler.policies.fifo import Fifo
from uellm_simulator.batching import ContinuousBatching, batching_of
from uellm_simulator.engine import Batch, Row, SimulatedEngine
from uellm_simulator.scenario import ENGINES, MODEL, Engine, Scenario
from uellm_simulator.simulate import simulate
from uellm_simulator.workload import Arrival, Predictions, Rules
from uellm_simulator.world import World

from tests.support.simulated import CONTINUOUS, STATIC, STEP, requests, world
from uellm.cost.kv_cache import KvCacheGroup, KvCacheLayout
from uellm.cost.steps import batch_work
from uellm.v1.stream_pb2 import DecisionRecord


def test_a_static_engine_by_hand():
    """Two rows begin at 0 and are padded to 20 tokens: 4 s of prefill. Steps take 2 s with two rows, 1.5 s with one.

    `0` has its tokens at 4 and 6; `1` at 4, 6, 7.5 and 9. `2` came at 1, and begins when the batch is over.
    """
    fates = world(STATIC, requests([(0, 10, 2), (0, 20, 4), (1, 10, 3)])).run()
    assert [fate.first_token_seconds for fate in fates] == pytest.approx([4, 4, 10])
    assert [fate.finish_seconds for fate in fates] == pytest.approx([6, 9, 13])
    assert [fate.dispatch_seconds for fate in fates] == pytest.approx([0, 0, 9])


def test_a_continuous_engine_by_hand():
    """`0` and `1` are computed in one prefill of 3 s. `0` ends after one step of 2 s, at 5, and `2` joins at once: its
    prefill lasts 1 s, in which `1` waits. `1` goes on at 6 in steps of 2 s and ends at 10 with `2` still running."""
    fates = world(CONTINUOUS, requests([(0, 10, 2), (0, 20, 4), (1, 10, 5)])).run()
    assert [fate.first_token_seconds for fate in fates] == pytest.approx([3, 3, 6])
    assert [fate.finish_seconds for fate in fates] == pytest.approx([5, 10, 13])


def test_a_row_that_comes_during_a_step_joins_after_it():
    """`0` has its first token at 1 and steps of 1.5 s; `1` comes at 2, within the first, which ends at 2.5."""
    fates = world(CONTINUOUS, requests([(0, 10, 3), (2, 10, 1)])).run()
    assert fates[1].first_token_seconds == pytest.approx(3.5)
    assert fates[0].finish_seconds == pytest.approx(5.0)


def test_a_full_cache_puts_the_last_row_off():
    """40 bytes in pages of 16: two rows of 10 tokens fit until they need a second page each; who came last waits, and
    is computed again when the first has ended."""
    layout = KvCacheLayout((KvCacheGroup(1, 1),))
    engine = SimulatedEngine(ContinuousBatching(2, layout, 40, 16), STEP)
    batch = Batch("b", 1, 2)
    engine.start([Row("first", batch, 10, 20), Row("second", batch, 10, 20)], 0.0)
    ends: dict[str, float] = {}
    while not engine.idle:
        now = engine.next_seconds
        ends.update({one.row.name: now for one in engine.advance(now) if one.ended})
    assert engine.preemptions == 1
    # Both: 2 s of prefill, and 5 steps of 2 s until they have 6 tokens; the first alone: 14 steps of 1.5 s.
    assert ends["first"] == pytest.approx(2 + 5 * 2 + 14 * 1.5)
    # The second: 16 tokens again, which gives its seventh, and 13 steps alone.
    assert ends["second"] == pytest.approx(ends["first"] + 1.6 + 13 * 1.5)


def with_cache(engine: Engine, tokens: int) -> Engine:
    return replace(engine, kv_tokens=tokens)


def test_two_engines_share_the_work():
    fates = world(STATIC, requests([(0, 10, 5)] * 4), deployments=2).run()
    assert Counter(fate.deployment for fate in fates) == {"deployments/0": 2, "deployments/1": 2}
    assert len({fate.finish_seconds for fate in fates}) == 1


def test_a_query_that_cannot_be_kept_is_refused_at_once():
    fates = world(STATIC, requests([(0, 10, 100)], deadline=5.0), policy="uellm").run()
    assert fates[0].refused
    assert fates[0].finish_seconds == 0.0


def test_the_time_of_a_static_batch_is_that_of_the_cost_model():
    lines = [(0, 30, 7), (0, 12, 19)]
    fates = world(STATIC, requests(lines)).run()
    work = batch_work([30, 12], [7, 19], padded=True)
    assert max(fate.finish_seconds for fate in fates) == pytest.approx(STEP.seconds(work))


LINES = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=15)


@settings(deadline=None, max_examples=30)
@given(lines=LINES, continuous=st.booleans(), policy=st.sampled_from(sorted(POLICIES)), tokens=st.integers(200, 2_000))
def test_nothing_is_lost_and_nothing_made_up(lines, continuous, policy, tokens):
    """In every step a request waits, is on one engine, or has ended; tokens never go back; memory keeps to the plan."""
    engine = with_cache(CONTINUOUS, tokens) if continuous else STATIC
    asked = requests(lines, deadline=60.0)
    played = world(engine, asked, policy)
    made: dict[str, int] = {}
    while played.step():
        check_step(played, made, tokens if continuous else None)
    for request in asked:
        fate = played.fates[request.name]
        assert fate.completed or fate.refused
        if fate.completed:
            assert fate.output_tokens == request.arrival.output_tokens
            assert request.arrival.seconds <= fate.dispatch_seconds < fate.first_token_seconds <= fate.finish_seconds


def check_step(played: World, made: dict[str, int], tokens: int | None) -> None:
    (deployed,) = played.deployed.values()
    engine = deployed.engine
    rows = [*engine.rows, *engine.joining, *engine.waiting]
    assert len({row.name for row in rows}) == len(rows)
    assert len(engine.rows) + len(engine.joining) <= 2
    for row in rows:
        assert made.get(row.name, 0) <= row.made < row.total_tokens
        made[row.name] = row.made
        assert math.isinf(played.fates[row.name].finish_seconds)
    if tokens is not None and len(engine.rows) > 1:
        assert sum(-(-row.context // 16) * 16 for row in engine.rows) <= tokens


@pytest.mark.parametrize("kind", ["static", "continuous"])
def test_equal_seeds_give_equal_runs_and_decisions_replay(kind):
    draw = random.Random(5)
    trace = [Arrival(number / 3, draw.randint(10, 900), draw.randint(1, 300)) for number in range(120)]
    scenario = Scenario(engine=ENGINES[kind], rules=Rules(predictions=Predictions(0.5, 0.3)), seed=7)
    runs, decisions = [], []
    for _ in range(2):
        told: list[tuple[str, DecisionRecord]] = []
        result = simulate(trace, scenario, on_decision=lambda name, record: told.append((name, record)))  # noqa: B023
        runs.append([(fate.state, fate.dispatch_seconds, fate.finish_seconds) for fate in result.fates])
        decisions.append(told)
    assert runs[0] == runs[1]
    assert [record.SerializeToString(deterministic=True) for _, record in decisions[0]] == [
        record.SerializeToString(deterministic=True) for _, record in decisions[1]
    ]
    again = [one for one in replay(decisions[0], POLICIES) if one.again is not None]
    assert len(again) > 10
    assert not any(difference(one) for one in again)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_jump_is_as_many_single_steps(data):
    """Looking at an engine more often changes nothing."""
    scenario = Scenario(engine=CONTINUOUS)
    ((record, step),) = scenario.records()
    lengths = data.draw(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
    looks = sorted(data.draw(st.lists(st.floats(0, 400), max_size=20)))
    ends = []
    for moments in ([], looks):
        engine = SimulatedEngine(batching_of(record), step)
        batch = Batch("b", 1, len(lengths))
        rows = [Row(str(number), batch, prompt, total) for number, (prompt, total) in enumerate(lengths)]
        engine.start(rows, 0.0)
        ended: dict[str, float] = {}
        waiting = list(moments)
        while not engine.idle:
            now = min([engine.next_seconds, *waiting[:1]])
            waiting = [moment for moment in waiting if moment > now]
            for one in engine.advance(now):
                if one.ended:
                    ended[one.row.name] = now
        ends.append(ended)
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)


class Hesitant(Fifo):
    """Dispatches one query when asked, though there is room for more, and counts how often that was."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()

    def decide(self, view, now_ms, random):
        self.asked[now_ms] += 1
        return super().decide(replace(view, slots=view.slots[:1]), now_ms, random)


@pytest.mark.parametrize("engine", [STATIC, replace(CONTINUOUS, rows=6)], ids=["static", "continuous"])
def test_a_policy_is_asked_once_for_each_thing_that_matters(engine):
    """That a batch has begun changes nothing that it could decide on, nor does the end of one without rows."""
    policy = Hesitant()
    lines = [(number // 3 * 1.037, 10, 3 + number) for number in range(12)]
    played = World(
        SchedulerCore(MODEL, 1, policy), Scenario(engine=engine).records(), requests(lines), tick_seconds=1e6
    )
    assert all(fate.completed for fate in played.run())
    assert set(policy.asked.values()) == {1}
