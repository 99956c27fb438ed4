"""What is deployed: written by the deployer, followed by the others."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import structlog
from google.protobuf.message import DecodeError

from uellm.messaging.clock import Clock, timestamp
from uellm.messaging.connection import RedisClient
from uellm.messaging.following import refreshing
from uellm.messaging.keys import DEPLOYMENTS, MODELS, QUEUES, ModelKeys, is_queue_name, queue_name
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_DRAINING, DEPLOYMENT_STATE_READY, DeploymentRecord

STALE_AFTER_MS = 30_000
"""A record that was not published again within this is not trusted any more."""

log = structlog.get_logger(__name__)


class DeploymentPublisher:
    """The deployer's side."""

    def __init__(self, redis: RedisClient, clock: Clock) -> None:
        self._redis = redis
        self._clock = clock

    async def publish(self, record: DeploymentRecord) -> None:
        """Write the record with a fresh publish time. To be repeated every 10 s."""
        fresh = DeploymentRecord()
        fresh.CopyFrom(record)
        fresh.schema_version = 1
        fresh.publish_time.CopyFrom(timestamp(self._clock.now_ms()))
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.sadd(MODELS, record.model)
            pipeline.sadd(QUEUES, queue_of(record))
            pipeline.hset(DEPLOYMENTS, record.name, fresh.SerializeToString())
            await pipeline.execute()

    async def withdraw(self, name: str) -> None:
        """Remove the record of `deployments/{deployment}`."""
        await self._redis.hdel(DEPLOYMENTS, name)

    async def records(self) -> list[DeploymentRecord]:
        """What is published by anybody; stale or not. What can't be read is left out."""
        return _read(await self._redis.hgetall(DEPLOYMENTS))

    async def drained(self, queue: str, name: str) -> bool:
        """Whether nothing runs on `deployments/{deployment}`, and its queue's owner knows that nothing may any more.

        True, too, where the queue has no owner: nobody dispatches.
        """
        keys = ModelKeys.of(queue)
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.get(keys.owner)
            pipeline.hget(keys.running, name)
            owner, value = await pipeline.execute()
        if owner is None:
            return True
        state, count = (value or b"0:0").decode().split(":")
        return int(state) == DEPLOYMENT_STATE_DRAINING and int(count) == 0


class DeploymentDirectory:
    """The followers' side: a copy in memory, refreshed in the background."""

    def __init__(self, redis: RedisClient, clock: Clock, interval_seconds: float = 0.5) -> None:
        self._redis = redis
        self._clock = clock
        self._interval = interval_seconds
        self._records: dict[str, DeploymentRecord] = {}
        self._listeners: list[Callable[[], None]] = []

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[DeploymentDirectory]:
        """Follow while the block runs. The first copy is taken before it begins, if Redis answers."""
        async with refreshing("deployments", self.refresh, self._interval):
            yield self

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call the listener after every change."""
        self._listeners.append(listener)

    def off_change(self, listener: Callable[[], None]) -> None:
        """Do not call the listener any more."""
        self._listeners.remove(listener)

    async def refresh(self) -> None:
        """Read the records now."""
        oldest = self._clock.now_ms() - STALE_AFTER_MS
        records = _read(await self._redis.hgetall(DEPLOYMENTS))
        found = {one.name: one for one in records if one.publish_time.ToMilliseconds() >= oldest}
        changed = _contents(found) != _contents(self._records)
        self._records = found
        if changed:
            for listener in list(self._listeners):
                listener()

    def models(self) -> set[str]:
        """The models that have a deployment in any state."""
        return {record.model for record in self._records.values()}

    def of_model(self, model: str) -> list[DeploymentRecord]:
        """All deployments of a model, by name."""
        return sorted((r for r in self._records.values() if r.model == model), key=lambda record: record.name)

    def of_queue(self, queue: str) -> list[DeploymentRecord]:
        """The deployments that serve a queue, by name."""
        return [record for record in self.of_model(ModelKeys.of(queue).model) if queue_of(record) == queue]

    def ready(self, model: str) -> list[DeploymentRecord]:
        """The deployments of a model that take queries, by name."""
        return [record for record in self.of_model(model) if record.state == DEPLOYMENT_STATE_READY]


def queue_of(record: DeploymentRecord) -> str:
    """The name of the queue that a deployment serves."""
    return queue_name(record.model, record.queue_shard)


async def queues_of(redis: RedisClient, model: str) -> list[str]:
    """Names of the queues that a model has or had, at least one, in order of their shards."""
    names = [name.decode(errors="replace") for name in await redis.smembers(QUEUES)]
    mine = [name for name in names if name.partition("/")[0] == model and is_queue_name(name)]
    return sorted(mine, key=lambda name: ModelKeys.of(name).shard) or [model]


def queue_for(name: str, ready: Sequence[DeploymentRecord]) -> str:
    """The queue of a query that comes now: drawn from those served by its name, in proportion to their traffic shares.

    Raises ValueError if nothing is ready.
    """
    shares: dict[str, float] = {}
    for record in sorted(ready, key=lambda record: record.name):
        shares[queue_of(record)] = shares.get(queue_of(record), 0.0) + record.traffic_share
    if not shares:
        raise ValueError("no deployment is ready")
    total = sum(shares.values())
    draw = zlib.crc32(name.encode()) / 2**32
    for queue, share in shares.items():
        draw -= share / total if total > 0 else 1 / len(shares)
        if draw < 0:
            return queue
    return queue


def same_record(a: DeploymentRecord, b: DeploymentRecord) -> bool:
    """Whether they say the same, whenever they were published."""
    return _content(a) == _content(b)


def _read(values: Mapping[bytes, bytes]) -> list[DeploymentRecord]:
    records = []
    for name, value in values.items():
        try:
            records.append(DeploymentRecord.FromString(value))
        except DecodeError:
            log.warning("deployment record can't be read", deployment=name.decode(errors="replace"))
    return records


def _contents(records: Mapping[str, DeploymentRecord]) -> dict[str, bytes]:
    return {name: _content(record) for name, record in records.items()}


def _content(record: DeploymentRecord) -> bytes:
    timeless = DeploymentRecord()
    timeless.CopyFrom(record)
    timeless.ClearField("publish_time")
    return timeless.SerializeToString(deterministic=True)
