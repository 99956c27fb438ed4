"""What is kept of a tenant's queries and of those that failed, on a real Redis: all of it is bounded and expires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from uellm_scheduler.app.tenants import Tenants
from uellm_scheduler.server import SchedulerServicer

from tests.support.stack import until
from tests.support.world import MODEL, submission
from uellm.messaging.connection import RedisClient
from uellm.messaging.events import PAGE, EventHub
from uellm.messaging.inbox import Inbox
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.letters import DeadLetters
from uellm.messaging.outcomes import OutcomesLostError, TenantQueries
from uellm.messaging.queries import DEAD_LETTERS_KEPT, DEAD_LETTERS_MS, Accepted, FinishRow, QueryStore
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED, Failure, Outcome
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub, add_SchedulerServiceServicer_to_server
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
            rows.append(replace(row, dead_letter=DeadLetter(name=row.name, failure=failure)))
        await self._finish(rows)

    async def _finish(self, rows: list[FinishRow]) -> None:
        assert set(await self.store.finish(MODEL, self.epoch, rows)) == {"ok"}

    def _row(self, identifier: str, outcome: Outcome) -> FinishRow:
        return FinishRow(submission(identifier).name, self.entries[identifier], 0, outcome)

    async def kept(self, key: str) -> list[str]:
        return [fields[b"q"].decode() for _, fields in await self.redis.xrange(key)]

    @property
    def queries(self) -> TenantQueries:
        return TenantQueries(self.redis, self.store, "t", MODEL)


def identifiers(count: int) -> list[str]:
    return [f"q{number}" for number in range(count)]


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


async def test_shards_of_a_queue_share_a_tenant_s_index(redis: RedisClient):
    """Streams give ids by the millisecond: within one, two shards of the queue would give the same."""
    store, queues = QueryStore(redis), (MODEL, f"{MODEL}/1", f"{MODEL}/2")
    made = [replace(submission(f"q{number}"), queue=queues[number % 3]) for number in range(300)]
    accepted = await asyncio.gather(*(store.submit(one, 10_000) for one in made))
    entries = {one.name: answer.entry_id for one, answer in zip(made, accepted, strict=True)}
    assert len(set(entries.values())) == len(made)
    listed = [(entry_id.decode(), fields[b"q"].decode()) for entry_id, fields in await redis.xrange(QUERIES)]
    assert sorted(listed) == sorted((entries[one.name], one.name.rpartition("/")[2]) for one in made)
    for queue in queues:
        waiting = {entry_id.decode() for entry_id, _ in await redis.xrange(ModelKeys.of(queue).queue)}
        assert waiting == {entries[one.name] for one in made if one.queue == queue}


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


async def test_the_newest_letter_of_a_query_is_found_and_taken_off(redis: RedisClient):
    desk, letters = await Desk.open(redis), DeadLetters(redis)
    await desk.submit("a", "b")
    await desk.fail("a", "b")
    await redis.delete("uellm:{tiny}:q:t:a")  # as if it had expired: its id may be used again
    await desk.submit("a")
    await desk.fail("a")
    await redis.xadd(KEYS.dead_letters, {"d": b"\xff", "r": b""})
    name = submission("a").name
    entries = [entry_id.decode() for entry_id, _ in await redis.xrange(KEYS.dead_letters)]
    found = await letters.find(MODEL, name)
    assert found is not None
    assert found.entry_id == entries[2]
    assert found.letter.record == submission("a").record
    await letters.remove(MODEL, found.entry_id)
    earlier = await letters.find(MODEL, name)
    assert earlier is not None
    assert earlier.entry_id == entries[0]
    assert [stored.letter.name async for stored in letters.read(MODEL, entries[0])] == [submission("b").name]


async def test_every_watcher_sees_every_outcome_from_its_cursor_on(redis: RedisClient):
    desk, names = await Desk.open(redis), identifiers(3 * PAGE)
    await desk.submit("before", *names)
    await desk.finish("before")
    start = await desk.queries.now()

    async def finish() -> None:
        for at in range(0, len(names), 50):
            await desk.finish(*names[at : at + 50])

    async def follow(hub: EventHub) -> list[str]:
        seen = []
        async with aclosing(desk.queries.follow(hub, start)) as outcomes:
            async for name, stored in outcomes:
                seen.append(name.rpartition("/")[2])
                assert stored.event.outcome.state == QUERY_STATE_COMPLETED
                if len(seen) == len(names):
                    return seen
        raise AssertionError

    async with EventHub(redis).running() as hub:
        followers = [asyncio.create_task(follow(hub)) for _ in range(3)]
        await finish()
        for seen in await asyncio.wait_for(asyncio.gather(*followers), 30):
            assert seen == names
        assert await asyncio.wait_for(follow(hub), 30) == names


async def test_a_consumer_that_falls_behind_what_is_kept_is_told(redis: RedisClient):
    desk, names = await Desk.open(redis, outcomes_kept=2 * PAGE), identifiers(4 * PAGE)
    await desk.submit("first", *names)
    async with EventHub(redis).running() as hub, aclosing(desk.queries.follow(hub, await desk.queries.now())) as slow:
        await desk.finish("first")
        await anext(slow)
        await desk.finish(*names)
        with pytest.raises(OutcomesLostError):
            [_ async for _ in slow]


async def test_a_quiet_tenant_s_watcher_is_not_told_of_losses(redis: RedisClient):
    desk = await Desk.open(redis, retention_ms=200)
    await desk.submit("a", "b")
    async with EventHub(redis).running() as hub, aclosing(desk.queries.follow(hub, await desk.queries.now())) as slow:
        await desk.finish("a")
        assert (await anext(slow))[0] == submission("a").name
        following = asyncio.create_task(anext(slow))

        async def record_is_gone() -> bool:
            return await desk.store.read(submission("a").name) is None

        await until(record_is_gone)
        await desk.finish("b")
        assert (await asyncio.wait_for(following, 30))[0] == submission("b").name


async def test_a_watcher_is_told_of_what_was_dropped_before_it_was_read(redis: RedisClient):
    desk, names = await Desk.open(redis, outcomes_kept=2 * PAGE), identifiers(4 * PAGE)
    await desk.submit("first", *names)
    async with EventHub(redis).running() as hub, aclosing(desk.queries.follow(hub, await desk.queries.now())) as live:
        await desk.finish("first")
        await anext(live)
        following = asyncio.create_task(anext(live))
        await desk.finish(*names)  # at once: half of them are never seen by anybody
        with pytest.raises(OutcomesLostError):
            await asyncio.wait_for(following, 30)


async def test_of_an_expired_stream_a_recent_cursor_is_good_and_an_old_one_is_not(redis: RedisClient):
    desk = await Desk.open(redis, retention_ms=10_000)
    await desk.submit("a", "b", "c")
    start = await desk.queries.now()
    milliseconds = int(start.partition("-")[0])
    old = f"{milliseconds - 12_000}-0"
    async with EventHub(redis).running() as hub:

        async def first_after(cursor: str) -> str:
            async with aclosing(desk.queries.follow(hub, cursor)) as outcomes:
                return (await asyncio.wait_for(anext(outcomes), 30))[0].rpartition("/")[2]

        with pytest.raises(OutcomesLostError):
            await first_after(old)
        following = asyncio.create_task(first_after(start))
        await desk.finish("a")
        assert await following == "a"
        [(entry, _)] = await redis.xrange(OUTCOMES)
        await desk.finish("b")
        assert await first_after(entry.decode()) == "b"
        with pytest.raises(OutcomesLostError):
            await first_after(old)


@pytest.mark.parametrize(("kept", "lost"), [(10, False), (3, True)])
async def test_a_cursor_before_what_is_kept_is_refused_only_if_something_is_gone(
    redis: RedisClient, kept: int, lost: bool
):
    desk = await Desk.open(redis, outcomes_kept=kept)
    start = await desk.queries.now()
    await desk.submit(*identifiers(5))
    await desk.finish(*identifiers(5))
    async with EventHub(redis).running() as hub, aclosing(desk.queries.follow(hub, start)) as outcomes:
        if lost:
            with pytest.raises(OutcomesLostError):
                await anext(outcomes)
        else:
            assert (await anext(outcomes))[0] == submission("q0").name


@asynccontextmanager
async def serving(redis: RedisClient, store: QueryStore) -> AsyncIterator[Any]:
    """A stub of a scheduler that only watches."""
    server = grpc.aio.server()
    async with EventHub(redis).running() as hub:
        servicer = SchedulerServicer(None, None, Tenants(redis, store, hub), None, None)  # type: ignore[arg-type]
        add_SchedulerServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield SchedulerServiceStub(channel)
        finally:
            await server.stop(None)


async def test_a_client_that_does_not_read_holds_nobody_back(redis: RedisClient):
    desk, names = await Desk.open(redis), identifiers(2 * PAGE)
    await desk.submit(*names)
    request = pb.WatchRequest(parent=f"tenants/t/models/{MODEL}")
    async with serving(redis, desk.store) as stub:
        calls = [stub.Watch(request) for _ in range(2)]
        sleeper, reader = (aiter(call) for call in calls)
        cursors = [(await anext(watch)).cursor for watch in (sleeper, reader)]
        for at in range(0, len(names), 32):  # 16 MB: far more than lies in the buffers between the two
            await desk.finish(*names[at : at + 32], text="x" * 32_768)
        for watch in (reader, sleeper):  # until the other has everything, the sleeper reads nothing
            seen = [await asyncio.wait_for(anext(watch), 30) for _ in names]
            assert [response.name.rpartition("/")[2] for response in seen] == names
        assert all(cursors)
