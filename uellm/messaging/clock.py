"""The queue's clock: RedisClient's own, since deadlines count from the time of a queue entry."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from redis.exceptions import RedisError

from uellm.messaging.connection import RedisClient, raise_if_cancelled


class Clock(Protocol):
    """Tells the time of the queue."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""


class RedisClock:
    """Redis's clock, kept by its offset to the monotonic clock of this process."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._offset_ms = time.time() * 1000 - _monotonic_ms()

    async def synchronise(self) -> None:
        """Measure the offset again; half of the round trip is taken as the way back."""
        before = _monotonic_ms()
        seconds, microseconds = await self._redis.time()
        after = _monotonic_ms()
        self._offset_ms = seconds * 1000 + microseconds / 1000 - (before + after) / 2

    @contextlib.asynccontextmanager
    async def following(self, interval_seconds: float = 10.0) -> AsyncIterator[RedisClock]:
        """Keep the offset fresh while the block runs."""
        task = asyncio.create_task(self._follow(interval_seconds), name="clock")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, interval_seconds: float) -> None:
        while True:
            raise_if_cancelled()
            try:
                await self.synchronise()
                pause = interval_seconds
            except (RedisError, OSError):
                pause = 0.5
            await asyncio.sleep(pause)

    def now_ms(self) -> int:
        """Milliseconds since the epoch, by Redis's clock."""
        return round(_monotonic_ms() + self._offset_ms)


def entry_time_ms(entry_id: str) -> int:
    """The time in a stream entry's id, in milliseconds since the epoch."""
    return int(entry_id.split("-", 1)[0])


def timestamp(milliseconds: int) -> Timestamp:
    """Milliseconds since the epoch as a protobuf timestamp."""
    stamp = Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


def _monotonic_ms() -> float:
    return time.monotonic() * 1000
