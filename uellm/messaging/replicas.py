"""How many replicas of the scheduler there are: each says every second that it is there."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import SCHEDULERS


@dataclass(frozen=True, slots=True)
class Replicas:
    """The replicas, seen by one of them."""

    redis: RedisClient
    replica: str
    gone_after_ms: int
    """One that was not heard of for so long does not count."""

    async def count(self) -> int:
        """Say that this one is there; returns how many are, itself included."""
        seconds, microseconds = await self.redis.time()
        now_ms = seconds * 1000 + microseconds // 1000
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.zadd(SCHEDULERS, {self.replica: now_ms})
            pipeline.zremrangebyscore(SCHEDULERS, "-inf", now_ms - self.gone_after_ms)
            pipeline.zcard(SCHEDULERS)
            pipeline.pexpire(SCHEDULERS, self.gone_after_ms)
            *_, count, _ = await pipeline.execute()
        return max(1, int(count))

    async def leave(self) -> None:
        """Say that this one is gone."""
        await self.redis.zrem(SCHEDULERS, self.replica)
