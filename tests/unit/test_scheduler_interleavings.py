"""The effect-free core through thousands of random crashes, pauses, delays and reorderings."""

from __future__ import annotations

import pytest
from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on

from tests.support.world import World
from uellm.v1.query_pb2 import QUERY_STATE_CANCELLED, QUERY_STATE_COMPLETED, QUERY_STATE_FAILED

MISHAPS = {
    "crash": 0.3,
    "hand_over": 0.3,
    "take_over": 0.3,
    "engine_dies": 0.3,
    "engine_lets_go": 0.3,
    "poison": 0.2,
    "cancel": 0.5,
}
NORMAL = {"submit": 2.0, "take": 2.0, "write": 6.0, "hear": 6.0, "produce": 5.0, "tick": 1.0}


def live(world: World, steps: int) -> None:
    actions = {**NORMAL, **MISHAPS}
    for action in world.choice.choices(list(actions), list(actions.values()), k=steps):
        getattr(world, action)()
    world.settle()
    world.check()


@pytest.mark.parametrize("policy", ["fifo", "slo-odbs", "uellm"])
@pytest.mark.parametrize("resumable", [True, False])
@pytest.mark.parametrize("block", range(5))
def test_every_query_ends_once_whatever_happens(policy: str, resumable: bool, block: int):
    for seed in range(block * 100, block * 100 + 100):
        live(World(seed, policy=policy, resumable=resumable), steps=150)


def test_the_search_reaches_every_kind_of_end():
    states = set()
    for seed in range(60):
        world = World(seed, max_attempts=2)
        live(world, steps=200)
        states |= {record.outcome.state for record in world.queue.records.values()}
    assert states == {QUERY_STATE_COMPLETED, QUERY_STATE_CANCELLED, QUERY_STATE_FAILED}


def test_without_mishaps_everything_completes():
    world = World(1)
    for action in world.choice.choices(list(NORMAL), list(NORMAL.values()), k=500):
        getattr(world, action)()
    world.settle()
    world.check()
    assert {record.outcome.state for record in world.queue.records.values()} == {QUERY_STATE_COMPLETED}


def test_news_of_an_unknown_row_does_not_hide_the_others():
    world = World(1)
    world.submit()
    world.take()
    while not world.engine.batches:
        world.write()
        world.hear()
    [batch_id] = world.engine.batches
    [name] = world.submitted
    unknown = on.RowNews("tenants/t/models/tiny/queries/unknown", 0, (1,), "x", "stop")
    known = on.RowNews(name, 0, (7,), "<7>")
    effects = world.owner.core.step(on.EngineNews(batch_id, (unknown, known)), world.queue.now_ms)
    [append] = effects
    assert isinstance(append, do.AppendEvents)
    assert [(row.name, row.event.token_delta.text) for row in append.rows] == [(name, "<7>")]


def test_the_search_reaches_every_kind_of_failure():
    reasons, attempts = set(), set()
    for seed in range(60):
        world = World(seed, max_attempts=2)
        live(world, steps=200)
        for letter in world.queue.dead_letters:
            reasons.add(letter.failure.reason)
            attempts |= {attempt.failure.reason for attempt in letter.attempts}
    assert reasons == {"ENGINE_ERROR", "RETRIES_EXHAUSTED"}
    assert attempts >= {"ENGINE_ERROR", "ENGINE_LOST", "SCHEDULER_LOST"}
