"""The Lua scripts against their model: the same random operations, the same answers. On Redis 6.2, and 7 if there."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.faults import find_redis_7
from tests.support.world import MODEL, submission
from uellm.local.process import ManagedProcess, free_port
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.inbox import Inbox
from uellm.messaging.keys import ModelKeys, query_keys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.memory import MemoryQueue
from uellm.messaging.queries import DispatchRow, EventRow, FencedError, FinishRow, QueryStore
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED, Failure, Outcome
from uellm.v1.stream_pb2 import Batched, DeadLetter, ProfiledQuery, QueryEvent, QueryRecord, TokenDelta

KEYS = ModelKeys(MODEL)
TENANTS = ("t", "u")


@pytest.fixture
async def redis_7(tmp_path: Path) -> AsyncIterator[RedisClient]:
    binary = find_redis_7()
    if binary is None:
        pytest.skip("no redis-server 7 on this machine")
    port = free_port()
    argv = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path), "--save", ""]
    server = ManagedProcess(
        "Redis 7", argv, log=tmp_path / "log", ready=lambda: b"Ready" in (tmp_path / "log").read_bytes()
    )
    server.start()
    try:
        server.wait_ready(20)
        client = connect(f"redis://127.0.0.1:{port}/0")
        yield client
        await client.aclose()
    finally:
        server.stop()


class Both:
    """The same operation on Redis and on the model; fails where the answers differ."""

    def __init__(self, redis: RedisClient, seed: int) -> None:
        self.redis = redis
        self.store = QueryStore(redis)
        self.model = MemoryQueue()
        self.choice = random.Random(seed)
        self.ids: dict[str, tuple[str, str]] = {}
        """Query -> its entry's id in Redis and in the model."""
        self.epochs = [(-1, -1)]

    async def acquire(self) -> None:
        await self.redis.delete(KEYS.owner)
        lease = await LeaseKeeper(self.redis, f"r{len(self.epochs)}").acquire(MODEL)
        assert lease is not None
        assert lease.epoch > self.epochs[-1][0]
        self.epochs.append((lease.epoch, self.model.acquire()))

    async def submit(self) -> None:
        made = submission(f"q{self.choice.randrange(6)}", tenant=self.choice.choice(TENANTS))
        if self.choice.random() < 0.2:
            made = type(made)(made.name, "another body", made.record, made.entry)
        real, expected = await self.store.submit(made, 6), self.model.submit(made, 6)
        assert type(real) is type(expected)
        if hasattr(real, "created"):
            assert (real.created, real.depth) == (expected.created, expected.depth)
            assert real.profile == expected.profile
            self.ids.setdefault(made.name, (real.entry_id, expected.entry_id))

    async def dispatch(self) -> None:
        rows = [
            DispatchRow(name, self.choice.randrange(3), QueryEvent(batched=Batched(batch_id="b", attempt=1)))
            for name in self._some()
        ]
        await self._same(
            lambda epoch: self.store.dispatch(MODEL, epoch, rows), lambda epoch: self.model.dispatch(epoch, rows)
        )

    async def append(self) -> None:
        event = QueryEvent(token_delta=TokenDelta(attempt=1, text=str(self.choice.random())))
        rows = [EventRow(name, self.choice.randrange(3), event) for name in self._some()]

        async def real(epoch: int) -> list[bool]:
            return [bool(event_id) for event_id in await self.store.append(MODEL, epoch, rows)]

        await self._same(real, lambda epoch: self.model.append(epoch, rows))

    async def finish(self) -> None:
        failed = self.choice.random() < 0.3
        outcome = Outcome(state=QUERY_STATE_FAILED if failed else QUERY_STATE_COMPLETED, text="done")
        last = QueryEvent(token_delta=TokenDelta(text="end")) if self.choice.random() < 0.5 else None
        chosen = [(name, self.choice.randrange(3)) for name in self._some()]

        def rows(side: int) -> list[FinishRow]:
            return [
                FinishRow(
                    name,
                    self.ids.get(name, ("0-1", "0-1"))[side],
                    attempts,
                    outcome,
                    last,
                    dead_letter=DeadLetter(name=name, failure=Failure(reason="R")) if failed else None,
                )
                for name, attempts in chosen
            ]

        real, model = rows(0), rows(1)
        await self._same(
            lambda epoch: self.store.finish(MODEL, epoch, real), lambda epoch: self.model.finish(epoch, model)
        )

    async def cancel(self) -> None:
        for name in self._some():
            assert await self.store.cancel(name) == self.model.cancel(name)

    async def compare(self) -> None:
        assert int(await self.redis.get(KEYS.depth) or 0) == self.model.depth
        assert await self.redis.xlen(KEYS.queue) == len(self.model.entries)
        for name, record in self.model.records.items():
            stored = await self.store.read(name)
            assert stored is not None
            assert (stored.state, stored.attempts, stored.outcome, stored.cancel_requested) == (
                record.state,
                record.attempts,
                record.outcome,
                record.cancel,
            )
            assert await self.redis.xlen(query_keys(name).events) == len(record.events)
        letters = []
        for _, fields in await self.redis.xrange(KEYS.dead_letters):
            letter = DeadLetter.FromString(fields[b"d"])
            letter.record.CopyFrom(QueryRecord.FromString(fields[b"r"]))
            letter.entry.CopyFrom(ProfiledQuery.FromString(fields[b"q"]))
            letters.append(letter)
        assert letters == self.model.dead_letters
        assert (await self.redis.pttl(KEYS.dead_letters) > 0) == bool(letters)
        for tenant in TENANTS:
            accepted, ended = self.model.accepted.get(tenant, []), self.model.ended.get(tenant, [])
            assert await self._names(tenant, KEYS.queries(tenant)) == accepted
            assert await self._names(tenant, KEYS.outcomes(tenant)) == ended
            for key in (KEYS.queries(tenant), KEYS.outcomes(tenant)):
                expires = await self.redis.pttl(key) > 0
                assert expires == (len(accepted) == len(ended)) or not await self.redis.exists(key)

    async def _names(self, tenant: str, key: str) -> list[str]:
        entries = await self.redis.xrange(key)
        return [submission(fields[b"q"].decode(), tenant=tenant).name for _, fields in entries]

    def _some(self) -> list[str]:
        names = [submission(f"q{number}", tenant=tenant).name for number in range(7) for tenant in TENANTS]
        return self.choice.sample(names, self.choice.randint(1, 5))

    async def _same(self, real, model) -> None:
        real_epoch, model_epoch = self.choice.choice(self.epochs[-2:])
        try:
            expected = model(model_epoch)
        except FencedError:
            with pytest.raises(FencedError):
                await real(real_epoch)
            return
        assert await real(real_epoch) == expected


async def compare_with_model(redis: RedisClient) -> None:
    for seed in range(30):
        await redis.flushall()
        both = Both(redis, seed)
        await Inbox(redis, MODEL, "someone").take_over()
        await both.acquire()
        for name in both.choice.choices(
            ["submit", "dispatch", "append", "finish", "cancel", "acquire"], [5, 5, 4, 4, 1, 1], k=60
        ):
            await getattr(both, name)()
        await both.compare()


async def test_scripts_behave_as_their_model(redis: RedisClient):
    await compare_with_model(redis)


async def test_scripts_behave_as_their_model_on_redis_7(redis_7: RedisClient):
    await compare_with_model(redis_7)
