"""When a query whose attempt failed is tried again, and what is written of one that is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.app.limits import CoreLimits
from uellm_scheduler.app.recovery import attempts_of
from uellm_scheduler.domain.failures import MESSAGE_CHARACTERS, MIN_WAIT_MS, no_more_attempts, retry_at_ms
from uellm_scheduler.domain.pending_query import NEVER, PendingQuery
from uellm_scheduler.policies import POLICIES

from tests.support.world import MODEL, deployment, submission
from uellm.messaging.queries import DispatchAnswer, FinishRow
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED
from uellm.v1.stream_pb2 import ENGINE_KIND_CONTINUOUS, Batched, QueryEvent, TokenDelta

ARRIVAL_MS = 1_000


def pending(*, slo_ms: int = 0, alone_ms: int = 0, attempts: int = 1) -> PendingQuery:
    made = submission("q", slo_seconds=slo_ms / 1000)
    made.entry.profile.service_time_p50.FromMilliseconds(alone_ms)
    return PendingQuery.of(made.name, f"{ARRIVAL_MS}-0", made.entry, attempts)


def taken(query_id: str = "q", *, slo_ms: int = 0) -> on.TakenQuery:
    made = submission(query_id, slo_seconds=slo_ms / 1000)
    return on.TakenQuery(made.name, f"{ARRIVAL_MS}-0", made.entry)


class Owner:
    """A core with one engine; the store and the engine are played by the test."""

    def __init__(self, max_attempts: int = 5, policy: str = "fifo", *, continuous: bool = False) -> None:
        self.now_ms = ARRIVAL_MS
        self.core = SchedulerCore(MODEL, 1, POLICIES[policy], CoreLimits(max_attempts=max_attempts))
        record = deployment()
        if continuous:
            record.engine_kind = ENGINE_KIND_CONTINUOUS
        self.tell(on.DeploymentsChanged((record,)))

    def tell(self, event: on.Event) -> list[do.Effect]:
        return self.core.step(event, self.now_ms)

    def take(self, *queries: on.TakenQuery) -> str:
        """Take queries, which are dispatched together; returns the batch."""
        return self.begin(self.tell(on.QueriesTaken(queries)))

    def begin(self, effects: list[do.Effect]) -> str:
        """The only batch that is dispatched; it begins."""
        [batch_id] = self.begun(effects)
        return batch_id

    def begun(self, effects: list[do.Effect]) -> list[str]:
        """The batches that are dispatched; they begin."""
        begin = [effect for effect in effects if isinstance(effect, do.BeginAttempts)]
        for batch in begin:
            answers = tuple(DispatchAnswer("ok", submission(row.name.rpartition("/")[2]).record) for row in batch.rows)
            self.tell(on.AttemptsBegun(batch.batch_id, answers))
        return [batch.batch_id for batch in begin]

    def lose(self, batch_id: str, after_ms: int = 0) -> list[FinishRow]:
        """The engine loses a batch; returns the queries that end. It answers again at once."""
        self.now_ms += after_ms
        effects = self.tell(on.BatchEnded(batch_id, "connection lost"))
        self.tell(on.EngineReady(deployment().name))
        return [row for effect in effects if isinstance(effect, do.FinishQueries) for row in effect.rows]

    def again(self) -> str:
        """Wait for the next attempt of the only query."""
        [slot] = self.core.pending.slots()
        self.now_ms = int(self.core.pending.column("not_before_ms")[slot])
        return self.begin(self.tell(on.Tick()))


def test_a_late_query_has_one_more_attempt_after_one_that_began_in_time():
    owner = Owner()
    batch = owner.take(taken(slo_ms=2_000))
    assert owner.lose(batch, after_ms=5_000) == []
    [row] = owner.lose(owner.again(), after_ms=10)
    assert row.outcome.state == QUERY_STATE_FAILED
    assert row.outcome.failure.reason == "RETRIES_EXHAUSTED"
    assert "began after the deadline" in row.outcome.failure.message
    assert "connection lost" in row.outcome.failure.message
    assert [attempt.attempt for attempt in row.dead_letter.attempts] == [1, 2]


def test_best_effort_is_bounded_by_dispatches():
    owner = Owner(max_attempts=3)
    batch = owner.take(taken())
    for _ in range(2):
        assert owner.lose(batch, after_ms=10**6) == []
        batch = owner.again()
    [row] = owner.lose(batch)
    letter = row.dead_letter
    assert [(attempt.attempt, attempt.failure.reason) for attempt in letter.attempts] == [
        (number, "ENGINE_LOST") for number in (1, 2, 3)
    ]
    assert len({attempt.batch_id for attempt in letter.attempts}) == 3
    assert [attempt.end_time.ToMilliseconds() for attempt in letter.attempts][-1] == owner.now_ms
    assert letter.fail_time.ToMilliseconds() == owner.now_ms
    assert letter.failure == row.outcome.failure


def test_backoff_has_an_end():
    owner = Owner(max_attempts=100)
    batch = owner.take(taken())
    for _ in range(80):
        assert owner.lose(batch) == []
        before = owner.now_ms
        batch = owner.again()
        assert MIN_WAIT_MS <= owner.now_ms - before <= CoreLimits().longest_backoff_ms


def test_a_poisoned_row_has_its_letter_and_its_mates_run_on():
    owner = Owner()
    mates = [taken(name) for name in ("a", "b", "c")]
    batch = owner.take(*mates)
    news = on.RowNews(mates[1].name, 0, (), "", "error", "x" * 10_000)
    [finish] = owner.tell(on.EngineNews(batch, (news,)))
    assert isinstance(finish, do.FinishQueries)
    [row] = finish.rows
    assert row.name == mates[1].name
    assert row.dead_letter.failure.reason == "ENGINE_ERROR"
    assert row.dead_letter.failure.message == "x" * MESSAGE_CHARACTERS
    assert [(a.attempt, a.batch_id, a.deployment) for a in row.dead_letter.attempts] == [(1, batch, deployment().name)]
    assert mates[0].name in owner.core.flight
    assert mates[2].name in owner.core.flight


def test_a_dispatch_whose_answer_was_lost_counts():
    owner = Owner(max_attempts=2)
    effects = owner.tell(on.QueriesTaken((taken(),)))
    for expected in (1, 2):
        [begin] = [effect for effect in effects if isinstance(effect, do.BeginAttempts)]
        answer = DispatchAnswer("stale", attempts=expected)
        effects = owner.tell(on.AttemptsBegun(begin.batch_id, (answer,)))
    [finish] = [effect for effect in effects if isinstance(effect, do.FinishQueries)]
    [row] = finish.rows
    assert [attempt.failure.reason for attempt in row.dead_letter.attempts] == ["DISPATCH_LOST"] * 2
    assert row.attempts == 2


def test_attempts_under_earlier_owners_are_read_from_the_events():
    def batched(number: int) -> QueryEvent:
        return QueryEvent(batched=Batched(batch_id=f"b{number}", deployment="deployments/a", attempt=number))

    events = [(10, batched(1)), (20, QueryEvent(token_delta=TokenDelta(attempt=1))), (30, batched(2))]
    found = attempts_of(events)
    assert [(a.attempt, a.batch_id, a.failure.reason, a.end_time.ToMilliseconds()) for a in found] == [
        (1, "b1", "SCHEDULER_LOST", 20),
        (2, "b2", "SCHEDULER_LOST", 30),
    ]
    owner = Owner(max_attempts=2)
    [finish] = owner.tell(on.QueriesTaken((replace(taken(), attempts=2, history=found),)))
    assert isinstance(finish, do.FinishQueries)
    assert tuple(finish.rows[0].dead_letter.attempts) == found
    assert "the scheduler that dispatched it was lost" in finish.rows[0].outcome.failure.message


def test_a_lost_scheduler_does_not_end_a_late_query():
    owner = Owner()
    owner.now_ms = ARRIVAL_MS + 10_000
    effects = owner.tell(on.QueriesTaken((replace(taken(slo_ms=2_000), attempts=3),)))
    assert any(isinstance(effect, do.BeginAttempts) for effect in effects)


@given(
    slo_ms=some.integers(0, 60_000),
    alone_ms=some.integers(0, 60_000),
    backoff_ms=some.floats(0, 60_000),
    waited_ms=some.integers(0, 120_000),
)
def test_backoff_leaves_time_for_the_answer(slo_ms: int, alone_ms: int, backoff_ms: float, waited_ms: int):
    query, now_ms = pending(slo_ms=slo_ms, alone_ms=alone_ms), ARRIVAL_MS + waited_ms
    at_ms = retry_at_ms(query, backoff_ms, now_ms)
    earliest, latest = now_ms + MIN_WAIT_MS, query.needs.deadline_ms - alone_ms
    assert earliest <= at_ms <= max(earliest, now_ms + round(backoff_ms))
    if not slo_ms or now_ms >= query.needs.deadline_ms:
        assert at_ms == max(earliest, now_ms + round(backoff_ms))
    else:
        assert at_ms <= max(earliest, latest)


@pytest.mark.parametrize(
    ("slo_ms", "attempts", "began_ms", "again"),
    [(0, 4, 10**9, True), (0, 5, 0, False), (500, 1, 1_499, True), (500, 1, 1_500, False)],
)
def test_the_bounds_of_retries(slo_ms: int, attempts: int, began_ms: int, again: bool):
    assert (not no_more_attempts(pending(slo_ms=slo_ms, attempts=attempts), began_ms, 5)) == again


def test_without_a_deadline_there_is_none():
    assert pending().needs.deadline_ms == NEVER == np.iinfo(np.int64).max


def poisoned(owner: Owner, batches: list[str], poison: str) -> dict[str, FinishRow]:
    """Play an engine that is lost with each batch that the poison is in; the others complete. Returns who ended how."""
    ended: dict[str, FinishRow] = {}
    while batches or len(owner.core.pending):
        assert owner.now_ms < 10**9
        if not batches:
            owner.now_ms += 1_000
            batches = owner.begun(owner.tell(on.Tick()))
            continue
        [batch_id] = batches
        names = list(owner.core.flight.batches[batch_id].rows)
        if poison in names:
            effects = owner.tell(on.BatchEnded(batch_id, "connection lost"))
            effects += owner.tell(on.EngineReady(deployment().name))
        else:
            news = tuple(on.RowNews(name, 0, (1,), "a", "stop") for name in names)
            effects = owner.tell(on.EngineNews(batch_id, news)) + owner.tell(on.BatchEnded(batch_id))
        ended |= {row.name: row for effect in effects if isinstance(effect, do.FinishQueries) for row in effect.rows}
        batches = owner.begun(effects)
    return ended


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("policy", ["fifo", "slo-odbs", "uellm"])
def test_a_query_that_ends_its_engine_takes_no_other_along(policy: str, continuous: bool):
    owner = Owner(max_attempts=3, policy=policy, continuous=continuous)
    batches = owner.begun(owner.tell(on.QueriesTaken(tuple(taken(name) for name in "abcde"))))
    poison = taken("c").name
    ended = poisoned(owner, batches, poison)
    assert len(ended) == 5
    states = {name: row.outcome.state for name, row in ended.items()}
    assert states.pop(poison) == QUERY_STATE_FAILED
    assert set(states.values()) == {QUERY_STATE_COMPLETED}
    assert len(ended[poison].dead_letter.attempts) == 3
    assert ended[poison].outcome.batch_rows == 1


def test_an_engine_serves_nothing_beside_a_query_that_is_to_be_alone():
    owner = Owner(max_attempts=2, continuous=True)
    [batch] = owner.begun(owner.tell(on.QueriesTaken((taken("a"),))))
    owner.lose(batch)
    # Others come before its time has come: it waits until they are through, and new ones wait for it.
    [others] = owner.begun(owner.tell(on.QueriesTaken((taken("b"),))))
    owner.now_ms += 10_000
    assert owner.begun(owner.tell(on.Tick())) == []
    assert owner.begun(owner.tell(on.QueriesTaken((taken("d"),)))) == []
    news = (on.RowNews(taken("b").name, 0, (1,), "a", "stop"),)
    [alone] = owner.begun(owner.tell(on.EngineNews(others, news)) + owner.tell(on.BatchEnded(others)))
    assert list(owner.core.flight.batches[alone].rows) == [taken("a").name]
    assert owner.begun(owner.tell(on.QueriesTaken((taken("e"),)))) == []
    news = (on.RowNews(taken("a").name, 0, (1,), "a", "stop"),)
    [rest] = owner.begun(owner.tell(on.EngineNews(alone, news)) + owner.tell(on.BatchEnded(alone)))
    assert sorted(owner.core.flight.batches[rest].rows) == [taken("d").name, taken("e").name]
