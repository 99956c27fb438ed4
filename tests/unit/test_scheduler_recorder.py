"""The flight recorder: what it writes is replayed bit for bit, from any keyframe on, and is no more than needed."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.comparison import difference
from uellm_scheduler.app.limits import CoreLimits
from uellm_scheduler.app.replay import RecordError, replay
from uellm_scheduler.domain.filling import fill_in_order
from uellm_scheduler.domain.pending import COLUMNS
from uellm_scheduler.domain.policy import Decision, PolicyInfo, QueueView
from uellm_scheduler.policies import POLICIES

from tests.support.recording import Life
from tests.support.world import World
from uellm.v1.query_pb2 import QUERY_STATE_REJECTED
from uellm.v1.stream_pb2 import DecisionRecord

seeds = st.integers(0, 10**6)


class Shuffled:
    """Fills in random order."""

    info: ClassVar[PolicyInfo] = PolicyInfo("shuffled", "")

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:
        return fill_in_order(view, random.permutation(len(view.slots)))


def assert_bit_for_bit(entries: list[tuple[str, DecisionRecord]], policies=POLICIES) -> list[str]:
    """Returns the ids of the decisions that were replayed."""
    replayed = []
    for one in replay(entries, policies):
        assert one.again == one.recorded, difference(one)
        assert len(one.view.slots) <= one.record.queued
        replayed.append(one.decision_id)
    return replayed


@pytest.mark.parametrize("policy", POLICIES)
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_what_is_recorded_is_replayed_bit_for_bit(policy: str, seed: int):
    entries = Life([policy], seed).live(100)
    assert assert_bit_for_bit(entries) == [name for name, record in entries if record.policy]


class Watched(Shuffled):
    """Keeps what it was shown when it decided something."""

    def __init__(self) -> None:
        self.shown: list[tuple[object, ...]] = []

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:
        decision = POLICIES["uellm"].decide(view, now_ms, random)
        if decision.batches or decision.refusals:
            self.shown.append(seen(view, now_ms))
        return decision


def seen(view: QueueView, now_ms: int) -> tuple[object, ...]:
    """All that a policy may look at."""
    columns = {name: view.column(name).tobytes() for name in COLUMNS}
    return now_ms, view.slots.tolist(), columns, view.table.tenants.served(now_ms).tobytes(), view.engines


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_a_policy_is_shown_again_what_it_saw(seed: int):
    life, watched = Life(["fifo"], seed), Watched()
    life.tell(on.PolicyChanged(watched))
    life.change = life.take_over = life.tick  # type: ignore[method-assign]
    life.live(120)
    again = [seen(one.view, one.record.time.ToMilliseconds()) for one in replay(life.entries, POLICIES)]
    assert again == watched.shown


@given(seed=seeds, policy=st.sampled_from(["fifo", "uellm"]))
@settings(max_examples=10, deadline=None)
def test_crashes_and_paused_owners_do_not_spoil_the_recording(seed: int, policy: str):
    world = World(seed, policy=policy)
    actions = {"submit": 2, "take": 2, "write": 6, "hear": 6, "produce": 5, "tick": 1, "take_over": 0.3, "crash": 0.2}
    for action in world.choice.choices(list(actions), list(actions.values()), k=200):
        getattr(world, action)()
    entries = world.queue.decisions
    assert assert_bit_for_bit(entries) == [name for name, record in entries if record.policy]
    numbers = [tuple(map(int, name.split("-"))) for name, _ in entries]
    assert numbers == sorted(set(numbers)), "ids grow over owners"


@given(seed=seeds, data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_recording_with_entries_gone_is_replayed_from_the_next_keyframe_on(seed: int, data: st.DataObject):
    entries = Life(["fifo", "edf", "uellm"], seed).live(120)
    first = data.draw(st.integers(0, len(entries)), label="trimmed")
    kept = entries[first:]
    if kept:
        lost = data.draw(st.integers(0, len(kept) - 1), label="lost")
        del kept[lost : lost + data.draw(st.integers(0, 2), label="so many")]
    readable, whole, last = [], False, (0, 0)
    for name, record in kept:
        epoch, number = map(int, name.split("-"))
        whole = record.keyframe or (whole and (epoch, number - 1) == last)
        last = epoch, number
        if whole and record.policy:
            readable.append(name)
    assert assert_bit_for_bit(kept) == readable


def test_a_decision_about_a_query_that_is_served_alone_is_replayed():
    entries = Life(["fifo"], 1).live(400)
    assert any(record.alone for _, record in entries)
    assert_bit_for_bit(entries)


def test_keyframes_come_often_enough_and_large_ones_in_parts():
    life = Life(["sjf"], 3)
    entries = life.live(300)
    since, epochs = 0, set()
    for name, record in entries:
        epoch = name.split("-")[0]
        assert record.keyframe or epoch in epochs, "an owner begins with the whole"
        epochs.add(epoch)
        since = 0 if record.keyframe else since + bool(record.policy)
        assert since <= 8 * life.limits.decisions_per_keyframe
        assert len(record.slots) <= life.limits.rows_per_entry
        assert len(record.names) == len(record.slots)
    assert any(record.keyframe and not record.policy for _, record in entries), "one in parts"
    assert sum(record.keyframe for _, record in entries) > len(epochs)


def test_a_large_table_is_told_again_only_when_as_much_was_written_or_after_eight_times_as_many_decisions():
    life = Life(["fifo"], 1, CoreLimits(decisions_per_keyframe=4))

    def decisions_between_keyframes() -> list[int]:
        for _ in range(100):
            life.tell(on.QueriesTaken((_patient(life),)))
            life.end()
        whole = [number for number, (_, record) in enumerate(life.entries) if record.keyframe]
        life.entries.clear()
        return [later - earlier for earlier, later in pairwise(whole)]

    assert set(decisions_between_keyframes()[1:]) == {4}
    life.tell(on.QueriesTaken(tuple(_patient(life) for _ in range(1_000))))
    assert set(decisions_between_keyframes()[1:]) == {32}


def _patient(life: Life) -> on.TakenQuery:
    query = life._query()
    query.query.ClearField("slo")
    life.waiting[query.name] = query
    return query


def test_a_review_that_only_refuses_tells_what_is_new_only():
    life = Life(["uellm"], 2, CoreLimits())
    life.tell(on.QueriesTaken(tuple(_patient(life) for _ in range(500))))
    hopeless = life._query()
    hopeless.query.slo.completion.FromMilliseconds(1)
    hopeless.query.slo.on_miss = 0
    before = len(life.entries)
    life.waiting[hopeless.name] = hopeless
    life.now_ms += 5
    life.tell(on.QueriesTaken((hopeless,)))
    life.tell(on.Tick())
    [(decision_id, record)] = life.entries[before:]
    assert (list(record.names), [plan.name for plan in record.refusals]) == ([hopeless.name], [hopeless.name])
    assert not record.batches
    assert record.ByteSize() < 3_000
    [outcome] = [
        row.outcome
        for effect in life.effects
        if isinstance(effect, do.FinishQueries)
        for row in effect.rows
        if row.outcome.state == QUERY_STATE_REJECTED
    ]
    assert outcome.decision_id == decision_id
    assert outcome.refusal == record.refusals[0].refusal


def test_a_decision_is_recorded_before_it_is_carried_out_and_its_rows_name_it():
    life = Life(["uellm", "fifo"], 5)
    life.live(150)
    recorded: dict[str, do.RecordDecision] = {}
    begun = 0
    for effect in life.effects:
        if isinstance(effect, do.RecordDecision):
            recorded[effect.decision_id] = effect
        elif isinstance(effect, do.BeginAttempts):
            [decision_id] = {row.event.batched.decision_id for row in effect.rows}
            [batch] = [b for b in recorded[decision_id].record.batches if b.batch_id == effect.batch_id]
            assert list(batch.names) == [row.name for row in effect.rows]
            assert {row.event.batched.deployment for row in effect.rows} == {batch.deployment}
            begun += 1
    assert begun > 30
    assert begun == sum(len(one.record.batches) for one in recorded.values())


def test_random_numbers_are_those_of_the_decision():
    life = Life(["fifo"], 4)
    life.tell(on.PolicyChanged(Shuffled()))
    for _ in range(40):
        life.arrive()
        life.end()
    records = [record for _, record in life.entries if record.policy == "shuffled"]
    assert len({record.seed for record in records}) == len(records) > 20
    assert_bit_for_bit(life.entries, {**POLICIES, "shuffled": Shuffled()})


def test_a_policy_of_another_version_is_not_asked():
    life = Life(["fifo"], 4)
    life.live(30)
    for _, record in life.entries:
        record.policy_version += 1
    assert {one.again for one in replay(life.entries, POLICIES)} == {None}


@pytest.mark.parametrize("damage", ["column", "names", "removed", "engine", "slot"])
def test_a_damaged_entry_is_said(damage: str):
    entries = Life(["fifo"], 4, CoreLimits()).live(60)
    name, record = next(
        (name, record) for name, record in entries if record.keyframe and record.policy and record.names
    )
    if damage == "column":
        record.columns["arrival_ms"] = record.columns["arrival_ms"][:-1]
    elif damage == "names":
        del record.names[:]
    elif damage == "removed":
        record.removed_slots.append(77)
    elif damage == "engine":
        record.engines[0].ClearField("record")
    else:
        record.slots[0] = 2**31
    with pytest.raises(RecordError, match=name):
        list(replay(entries, POLICIES))


class Counting(Shuffled):
    asked = 0

    def __init__(self, *, refuses: bool) -> None:
        self.info = PolicyInfo("counting", "Decides nothing.", refuses=refuses)

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:
        self.asked += 1
        return Decision()


@pytest.mark.parametrize("refuses", [True, False])
def test_a_policy_is_not_asked_for_tokens_that_come(refuses: bool):
    """With all places taken it is asked by the clock, if it may refuse anything."""
    life = Life(["fifo"], 6)
    life.tell(on.QueriesTaken((_patient(life),)))
    life.tell(on.QueriesTaken(tuple(_patient(life) for _ in range(9))))
    counting = Counting(refuses=refuses)
    life.tell(on.PolicyChanged(counting))
    asked = counting.asked
    for _ in range(5):
        life.produce()
    assert counting.asked == asked
    life.tick()
    assert counting.asked == asked + refuses
    life.end()
    assert counting.asked > asked + refuses
