"""The flight recorder in Redis: fenced, written once, bounded whoever writes."""

from __future__ import annotations

import pytest

from uellm.messaging.connection import RedisClient
from uellm.messaging.decisions import KEPT_MS, PAGE, DecisionStore
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import FencedError
from uellm.v1.stream_pb2 import DecisionRecord

MODEL = "tiny"
KEYS = ModelKeys(MODEL)


async def own(redis: RedisClient, replica: str = "one") -> int:
    keeper = LeaseKeeper(redis, replica)
    if lease := await keeper.acquire(MODEL):
        return lease.epoch
    await redis.delete(KEYS.owner)
    return await own(redis, replica)


def record(size: int) -> DecisionRecord:
    return DecisionRecord(schema_version=1, policy="fifo", columns={"x": b"x" * size})


async def ids(store: DecisionStore, after: str = "") -> list[str]:
    return [stored.decision_id async for stored in store.read(MODEL, after)]


async def test_entries_are_read_in_order_over_owners_from_any_of_them(redis: RedisClient):
    store, written = DecisionStore(redis), []
    for owner in ("one", "two"):
        epoch = await own(redis, owner)
        for number in range(1, 2 * PAGE + 2):
            written.append(f"{epoch}-{number}")
            await store.write(MODEL, epoch, written[-1], record(10))
    assert await ids(store) == written
    assert await ids(store, written[3]) == written[4:]
    assert await ids(store, written[-1]) == []
    back = [stored.decision_id async for stored in store.read_back(MODEL, written[40])]
    assert back == written[39::-1]
    assert [s.decision_id for s in await store.find(MODEL, [written[5], "1-1", written[0]])] == [written[5], written[0]]
    assert KEPT_MS - 60_000 < await redis.pttl(KEYS.decisions) <= KEPT_MS


async def test_an_entry_is_written_once_and_only_by_the_owner(redis: RedisClient):
    store = DecisionStore(redis)
    before, epoch = await own(redis), await own(redis, "two")
    with pytest.raises(FencedError):
        await store.write(MODEL, before, f"{before}-1", record(10))
    for _ in range(2):  # the answer to the first one was lost
        await store.write(MODEL, epoch, f"{epoch}-1", record(10))
    assert await ids(store) == [f"{epoch}-1"]


async def test_bytes_are_bounded_over_owners_and_the_newest_is_always_kept(redis: RedisClient):
    store, written = DecisionStore(redis, bytes_kept=10_000), []
    for owner in ("one", "two", "three"):
        epoch = await own(redis, owner)
        for number, size in enumerate((100, 4_000, 3_000, 1_000), 1):
            written.append((f"{epoch}-{number}", record(size).ByteSize()))
            await store.write(MODEL, epoch, written[-1][0], record(size))
            kept = await ids(store)
            bytes_kept = [size for name, size in written if name in kept]
            assert kept == [name for name, _ in written][-len(kept) :]
            assert sum(bytes_kept) <= 10_000
            dropped = written[: -len(kept)]
            assert not dropped or dropped[-1][1] + sum(bytes_kept) > 10_000, "more than needed was dropped"
    await store.write(MODEL, epoch, f"{epoch}-9", record(50_000))
    assert await ids(store) == [f"{epoch}-9"]


async def test_entries_are_bounded_by_their_number(redis: RedisClient):
    store, epoch = DecisionStore(redis, entries_kept=5), await own(redis)
    for number in range(1, 12):
        await store.write(MODEL, epoch, f"{epoch}-{number}", record(10))
    assert await ids(store) == [f"{epoch}-{number}" for number in range(7, 12)]


async def test_an_entry_that_cannot_be_read_is_left_out(redis: RedisClient):
    store, epoch = DecisionStore(redis), await own(redis)
    await redis.xadd(KEYS.decisions, {"d": b"\xff\xff", "b": 2}, id="1-1")
    await store.write(MODEL, epoch, f"{epoch}-1", record(10))
    assert await ids(store) == [f"{epoch}-1"]
