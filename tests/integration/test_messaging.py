"""Leases, inbox and event streams on a real Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from uellm_scheduler.app.ownership import Ownership

from tests.support.world import MODEL, deployment, submission
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import RedisClock, entry_time_ms
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.deployments import DeploymentDirectory, DeploymentPublisher
from uellm.messaging.events import EventHub
from uellm.messaging.gathering import Gathered
from uellm.messaging.inbox import Inbox
from uellm.messaging.keys import GROUP, QUEUES, ModelKeys, query_keys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import Accepted, DispatchRow, EventRow, FinishRow, QueryStore
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_QUEUED, Outcome
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_DRAINING, DEPLOYMENT_STATE_READY, Batched, QueryEvent, TokenDelta

KEYS = ModelKeys(MODEL)


async def submitted(store: QueryStore, identifier: str) -> Accepted:
    accepted = await store.submit(submission(identifier), 100)
    assert isinstance(accepted, Accepted)
    return accepted


def delta(text: str) -> QueryEvent:
    return QueryEvent(token_delta=TokenDelta(attempt=1, text=text))


class LosesAnswers:
    """A connection that breaks when a command has run and before its answer has come."""

    def __init__(self, redis: RedisClient, command: str, times: int = 1) -> None:
        self._redis, self._command, self._left = redis, command, times

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._redis, name)
        if name != self._command:
            return real

        async def lost(*arguments: Any, **options: Any) -> Any:
            answer = await real(*arguments, **options)
            if answer and self._left:
                self._left -= 1
                raise ConnectionError("the answer was lost")
            return answer

        return lost


async def test_entries_whose_answer_was_lost_are_read_again(redis: RedisClient):
    store, inbox = QueryStore(redis), Inbox(LosesAnswers(redis, "xreadgroup", 2), MODEL, "one")
    first = await submitted(store, "first")
    assert [entry.entry_id for entry in await inbox.take_over()] == []
    with pytest.raises(ConnectionError):
        await inbox.read()
    second = await submitted(store, "second")
    with pytest.raises(ConnectionError):
        await inbox.read(block_ms=10)
    heard = [*await inbox.read(block_ms=10), *await inbox.read(block_ms=10), *await inbox.read(block_ms=10)]
    assert [entry.entry_id for entry in heard] == [first.entry_id, second.entry_id]
    third = await submitted(store, "third")
    assert [entry.entry_id for entry in await inbox.read()] == [third.entry_id]
    assert await inbox.read(block_ms=10) == []


async def test_what_a_former_owner_read_too_late_is_found(redis: RedisClient):
    store, former, owner = QueryStore(redis), Inbox(redis, MODEL, "former"), Inbox(redis, MODEL, "owner")
    await former.take_over()
    own = await submitted(store, "own")
    await owner.take_over()
    assert [entry.entry_id for entry in await owner.read()] == [own.entry_id]
    late = await submitted(store, "late")
    assert [entry.entry_id for entry in await former.read()] == [late.entry_id]
    assert await owner.read(block_ms=10) == []
    assert [entry.entry_id for entry in await owner.strays()] == [late.entry_id]
    assert await owner.strays() == []
    assert (await redis.xpending(KEYS.queue, GROUP))["consumers"] == [{"name": b"owner", "pending": 2}]
    new = await submitted(store, "new")
    assert [entry.entry_id for entry in await owner.read()] == [new.entry_id]


async def test_a_lease_has_one_holder_and_a_growing_epoch(redis: RedisClient):
    one, two = LeaseKeeper(redis, "one"), LeaseKeeper(redis, "two")
    first = await one.acquire(MODEL)
    assert first is not None
    assert await two.acquire(MODEL) is None
    assert await one.renew(first)
    await one.release(first)
    second = await two.acquire(MODEL)
    assert second is not None
    assert second.epoch > first.epoch
    assert not await one.renew(first)
    assert await two.holder(MODEL) == ("two", second.epoch)


async def test_a_lease_that_ran_out_untaken_can_be_renewed(redis: RedisClient):
    keeper = LeaseKeeper(redis, "one")
    lease = await keeper.acquire(MODEL)
    assert lease is not None
    await redis.delete(KEYS.owner)
    assert await keeper.renew(lease)
    assert await keeper.holder(MODEL) == ("one", lease.epoch)


async def test_the_epoch_grows_even_if_redis_forgot_it(redis: RedisClient):
    keeper = LeaseKeeper(redis, "one")
    first = await keeper.acquire(MODEL)
    await redis.flushall()
    second = await keeper.acquire(MODEL)
    assert first is not None
    assert second is not None
    assert second.epoch >= first.epoch
    assert not await keeper.renew(type(first)(MODEL, second.epoch - 1))


async def test_a_new_owner_takes_over_what_the_old_one_read(redis: RedisClient):
    store, old, new = QueryStore(redis), Inbox(redis, MODEL, "old"), Inbox(redis, MODEL, "new")
    assert await old.take_over() == []
    for number in range(5):
        await submitted(store, f"q{number}")
    assert len(await old.read(count=3)) == 3
    taken = await new.take_over()
    assert [entry.query.name[-2:] for entry in taken if entry.query] == ["q0", "q1", "q2"]
    rest = await new.read()
    assert [entry.query.name[-2:] for entry in rest if entry.query] == ["q3", "q4"]
    consumers = await redis.xinfo_consumers(KEYS.queue, "scheduler")
    assert [consumer["name"] for consumer in consumers] == [b"new"]


async def test_entries_that_cannot_be_read_are_named_not_raised(redis: RedisClient):
    inbox = Inbox(redis, MODEL, "one")
    await inbox.take_over()
    await redis.xadd(KEYS.queue, {"q": b"\xff\xff\xff"})
    await redis.xadd(KEYS.queue, {"other": b""})
    entries = await inbox.read()
    assert [(entry.query, entry.control) for entry in entries] == [(None, None)] * 2
    for entry in entries:
        await inbox.acknowledge(entry.entry_id)
    assert await redis.xlen(KEYS.queue) == 0


async def test_a_finished_query_leaves_nothing_that_does_not_expire(redis: RedisClient):
    store, inbox = QueryStore(redis), Inbox(redis, MODEL, "one")
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    accepted = await submitted(store, "q")
    await inbox.take_over()
    await inbox.read()
    name = submission("q").name
    [answer] = await store.dispatch(MODEL, lease.epoch, [DispatchRow(name, 0, QueryEvent(batched=Batched()))])
    assert answer.record is not None
    assert answer.record.query.prompt == "p"
    outcome = Outcome(state=QUERY_STATE_COMPLETED)
    assert await store.finish(MODEL, lease.epoch, [FinishRow(name, accepted.entry_id, 1, outcome)]) == ["ok"]
    assert await redis.xlen(KEYS.queue) == 0
    assert int(await redis.get(KEYS.depth)) == 0
    assert await redis.hget(query_keys(name).record, "payload") is None
    for key in (query_keys(name).record, query_keys(name).events):
        assert 0 < await redis.pttl(key) <= store.retention_ms


async def test_a_record_from_before_there_were_shards_is_cancelled_on_the_first_one(redis: RedisClient):
    store, name = QueryStore(redis), submission("q").name
    await submitted(store, "q")
    await redis.hdel(query_keys(name).record, "queue")
    assert await store.cancel(name) == QUERY_STATE_QUEUED
    assert await redis.xlen(KEYS.queue) == 2
    assert await store.cancel(submission("unknown").name) is None


async def test_watchers_see_every_event_once_and_can_resume(redis: RedisClient):
    store = QueryStore(redis)
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    accepted = await submitted(store, "q")
    name = submission("q").name
    texts = [str(number) for number in range(700)]

    async def produce() -> None:
        await store.dispatch(MODEL, lease.epoch, [DispatchRow(name, 0, QueryEvent(batched=Batched()))])
        for text in texts:
            await store.append(MODEL, lease.epoch, [EventRow(name, 1, delta(text))])
        await store.finish(MODEL, lease.epoch, [FinishRow(name, accepted.entry_id, 1, Outcome(text="".join(texts)))])

    async def follow(hub: EventHub, slow: bool) -> list[str]:
        seen, cursor = [], ""
        async for stored in hub.watch(name):
            if stored.event.HasField("token_delta"):
                seen.append(stored.event.token_delta.text)
            if slow and len(seen) == 20:
                cursor = stored.cursor
                break
        if cursor:
            await writer
            async for stored in hub.watch(name, cursor):
                if stored.event.HasField("token_delta"):
                    seen.append(stored.event.token_delta.text)
        return seen

    async with EventHub(redis).running() as hub:
        followers = [asyncio.create_task(follow(hub, slow)) for slow in (False, False, True)]
        writer = asyncio.create_task(produce())
        for seen in await asyncio.wait_for(asyncio.gather(*followers), 30):
            assert seen == texts


async def test_a_watcher_that_does_not_read_holds_nobody_back(redis: RedisClient):
    store = QueryStore(redis)
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    accepted = await submitted(store, "q")
    name = submission("q").name
    await store.dispatch(MODEL, lease.epoch, [DispatchRow(name, 0, QueryEvent(batched=Batched()))])
    async with EventHub(redis).running() as hub:
        sleeper = hub.watch(name)
        await anext(sleeper)
        reader = hub.watch(name)
        for number in range(600):
            await store.append(MODEL, lease.epoch, [EventRow(name, 1, delta(str(number)))])
        await store.finish(MODEL, lease.epoch, [FinishRow(name, accepted.entry_id, 1, Outcome())])
        read = [stored async for stored in reader]
        late = [stored async for stored in sleeper]
        assert len(read) == 603
        assert late == read[1:]
        assert read[-1].event.HasField("outcome")


async def test_deployments_are_followed_until_they_are_withdrawn(redis: RedisClient):
    clock = RedisClock(redis)
    await clock.synchronise()
    publisher = DeploymentPublisher(redis, clock)
    directory = DeploymentDirectory(redis, clock, interval_seconds=0.01)
    changes: asyncio.Queue[int] = asyncio.Queue()
    record = deployment()
    async with directory.following():
        directory.on_change(lambda: changes.put_nowait(len(directory.of_model(MODEL))))
        await publisher.publish(record)
        assert await asyncio.wait_for(changes.get(), 5) == 1
        assert [found.name for found in directory.ready(MODEL)] == [record.name]
        record.state = DEPLOYMENT_STATE_DRAINING
        await publisher.publish(record)
        await asyncio.wait_for(changes.get(), 5)
        assert directory.ready(MODEL) == []
        await publisher.withdraw(record.name)
        assert await asyncio.wait_for(changes.get(), 5) == 0


async def test_a_deployment_is_drained_when_its_queue_s_owner_says_so(redis: RedisClient):
    clock = RedisClock(redis)
    publisher, name = DeploymentPublisher(redis, clock), deployment().name
    assert await publisher.drained(MODEL, name), "no owner: nobody dispatches"
    await LeaseKeeper(redis, "one").acquire(MODEL)
    await redis.hset(KEYS.running, name, f"{DEPLOYMENT_STATE_READY}:0")
    assert not await publisher.drained(MODEL, name), "the owner does not know yet"
    await redis.hset(KEYS.running, name, f"{DEPLOYMENT_STATE_DRAINING}:2")
    assert not await publisher.drained(MODEL, name)
    await redis.hset(KEYS.running, name, f"{DEPLOYMENT_STATE_DRAINING}:0")
    assert await publisher.drained(MODEL, name)


async def test_the_clock_is_that_of_the_queue(redis: RedisClient):
    clock = RedisClock(redis)
    await clock.synchronise()
    accepted = await submitted(QueryStore(redis), "q")
    assert abs(clock.now_ms() - entry_time_ms(accepted.entry_id)) < 1_000


async def test_commands_of_many_callers_share_round_trips(redis: RedisClient):
    store = QueryStore(redis)
    await redis.script_flush()
    answers = await asyncio.gather(*(store.submit(submission(f"q{number}"), 30) for number in range(50)))
    assert sum(isinstance(answer, Accepted) for answer in answers) == 30
    assert sorted(answer.depth for answer in answers if isinstance(answer, Accepted)) == list(range(1, 31))


async def test_each_caller_gets_its_own_error(redis: RedisClient):
    gathered = Gathered(redis)
    await redis.set("text", "x")
    answers = await asyncio.gather(
        gathered.execute("GET", "text"),
        gathered.execute("INCR", "text"),
        gathered.execute("GET", "nothing"),
        return_exceptions=True,
    )
    assert (answers[0], answers[2]) == (b"x", None)
    assert isinstance(answers[1], ResponseError)


async def test_all_callers_are_told_when_redis_is_away(tmp_path: Path):
    server = EmbeddedRedis(tmp_path, free_port())
    server.start()
    server.wait_ready()
    try:
        client = connect(server.url)
        gathered = Gathered(client)
        assert await gathered.execute("PING")
        server.stop()
        errors = await asyncio.gather(*(gathered.execute("PING") for _ in range(20)), return_exceptions=True)
        assert {isinstance(error, RedisConnectionError) for error in errors} == {True}
        server.start()
        server.wait_ready()
        assert await gathered.execute("PING")
        await client.aclose()
    finally:
        server.stop()


async def test_a_caller_that_leaves_takes_nobody_along(redis: RedisClient):
    gathered = Gathered(redis)
    calls = [asyncio.create_task(gathered.execute("INCR", "n")) for _ in range(5)]
    await asyncio.sleep(0)
    calls[2].cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(answer for answer in done if isinstance(answer, int)) == [1, 2, 4, 5]


def test_a_transport_that_closed_meanwhile_is_a_lost_connection(redis_server: EmbeddedRedis):
    """uvloop, on which the services run, says RuntimeError, which nobody takes for a Redis that is away."""

    async def run() -> None:
        client = connect(redis_server.url)
        connection = await client.connection_pool.get_connection()
        connection._writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(RedisConnectionError):
            await connection.send_command("PING")
        await client.connection_pool.release(connection)
        assert await client.ping()
        await client.aclose()

    uvloop.run(run())


async def test_what_nobody_expected_does_not_end_the_search_for_queues(redis: RedisClient):
    await redis.sadd(QUEUES, MODEL)
    tried_again = asyncio.Event()

    class Leases(LeaseKeeper):
        tries = 0

        async def acquire(self, model: str) -> None:
            self.tries += 1
            if self.tries == 1:
                raise RuntimeError("nobody expected this")
            tried_again.set()

    leases = Leases(redis, "one", time_to_live_ms=50)
    async with Ownership(leases, SimpleNamespace(redis=redis)).running():
        await asyncio.wait_for(tried_again.wait(), 10)
