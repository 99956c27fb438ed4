"""What is kept of a tenant's queries and of those that failed, on a real Redis: all of it is bounded and expires."""

from __future__ import annotations

from dataclasses import replace

from tests.support.stack import until
from tests.support.world import MODEL, submission
from uellm.messaging.connection import RedisClient
from uellm.messaging.inbox import Inbox
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import DEAD_LETTERS_KEPT, DEAD_LETTERS_MS, Accepted, FinishRow, QueryStore
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED, Failure, Outcome
from uellm.v1.stream_pb2 import DeadLetter

KEYS = ModelKeys(MODEL)
QUERIES, OUTCOMES = KEYS.queries("t"), KEYS.outcomes("t")


class Desk:
    """Submits and finishes queries."""

    def __init__(self, redis: RedisClient, epoch: int, **settings: int) -> None:
        self.redis = redis
        self.store = QueryStore(redis, **settings)
        self.epoch = epoch
        self.entries: dict[str, str] = {}

    @classmethod
    async def open(cls, redis: RedisClient, **settings: int) -> Desk:
        lease = await LeaseKeeper(redis, "one").acquire(MODEL)
        assert lease is not None
        await Inbox(redis, MODEL, "one").take_over()
        return cls(redis, lease.epoch, **settings)

    async def submit(self, *identifiers: str) -> None:
        for identifier in identifiers:
            made = submission(identifier)
            accepted = await self.store.submit(made, 10_000)
            assert isinstance(accepted, Accepted)
            self.entries[identifier] = accepted.entry_id

    async def finish(self, *identifiers: str, text: str = "") -> None:
        outcome = Outcome(state=QUERY_STATE_COMPLETED, text=text)
        await self._finish([self._row(identifier, outcome) for identifier in identifiers])

    async def fail(self, *identifiers: str) -> None:
        failure = Failure(reason="ENGINE_ERROR", message="can't")
        rows = []
        for identifier in identifiers:
            row = self._row(identifier, Outcome(state=QUERY_STATE_FAILED, failure=failure))
            entry = submission(identifier).entry
            rows.append(replace(row, dead_letter=DeadLetter(name=row.name, failure=failure, entry=entry)))
        await self._finish(rows)

    async def _finish(self, rows: list[FinishRow]) -> None:
        assert set(await self.store.finish(MODEL, self.epoch, rows)) == {"ok"}

    def _row(self, identifier: str, outcome: Outcome) -> FinishRow:
        return FinishRow(submission(identifier).name, self.entries[identifier], 0, outcome)

    async def kept(self, key: str) -> list[str]:
        return [fields[b"q"].decode() for _, fields in await self.redis.xrange(key)]


async def test_index_and_outcomes_expire_together_when_nothing_is_left_to_do(redis: RedisClient):
    desk = await Desk.open(redis)
    await desk.submit("a", "b")
    assert await redis.pttl(QUERIES) == -1
    await desk.finish("b")
    assert [await redis.pttl(key) for key in (QUERIES, OUTCOMES)] == [-1, -1], "a is not done yet"
    await desk.finish("a")
    for key in (QUERIES, OUTCOMES):
        assert 0 < await redis.pttl(key) <= desk.store.retention_ms
    assert (await desk.kept(QUERIES), await desk.kept(OUTCOMES)) == (["a", "b"], ["b", "a"])
    await desk.submit("c")
    assert [await redis.pttl(key) for key in (QUERIES, OUTCOMES)] == [-1, -1]


async def test_outcomes_older_than_records_go_and_their_queries_with_them(redis: RedisClient):
    desk = await Desk.open(redis, retention_ms=300)
    await desk.submit("waiting", "a", "b", "c", "d")
    await desk.finish("a", "b", "c")

    async def records_are_gone() -> bool:
        return not any(await desk.store.read_many([submission(name).name for name in ("a", "b", "c")]))

    await until(records_are_gone)
    await desk.finish("d")
    assert (await desk.kept(QUERIES), await desk.kept(OUTCOMES)) == (["waiting", "d"], ["d"])
    await desk.finish("waiting")

    async def all_gone() -> bool:
        return await redis.keys("*:t:*") == []

    await until(all_gone)


async def test_outcomes_are_bounded_by_count(redis: RedisClient):
    desk = await Desk.open(redis, outcomes_kept=5)
    names = [f"q{number}" for number in range(20)]
    await desk.submit(*names, "waiting")
    await desk.finish(*names)
    assert await desk.kept(OUTCOMES) == names[-5:]
    assert await desk.kept(QUERIES) == [*names[-5:], "waiting"]


async def test_a_record_that_was_lost_leaves_the_index_with_its_end(redis: RedisClient):
    desk = await Desk.open(redis)
    await desk.submit("lost", "kept")
    await redis.delete("uellm:{tiny}:q:t:lost")
    row = FinishRow(submission("lost").name, desk.entries["lost"], 0, Outcome())
    assert await desk.store.finish(MODEL, desk.epoch, [row]) == ["gone"]
    assert await desk.kept(QUERIES) == ["kept"]


async def test_dead_letters_are_bounded_and_expire(redis: RedisClient):
    desk = await Desk.open(redis)
    names = [f"q{number}" for number in range(DEAD_LETTERS_KEPT + 400)]
    for at in range(0, len(names), 100):
        await desk.submit(*names[at : at + 100])
        await desk.fail(*names[at : at + 100])
    count = await redis.xlen(KEYS.dead_letters)
    assert DEAD_LETTERS_KEPT <= count < DEAD_LETTERS_KEPT + 200
    [(_, last)] = await redis.xrevrange(KEYS.dead_letters, count=1)
    assert DeadLetter.FromString(last[b"d"]).name == submission(names[-1]).name
    assert 0 < await redis.pttl(KEYS.dead_letters) <= DEAD_LETTERS_MS
