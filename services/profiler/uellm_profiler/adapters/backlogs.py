"""Predicted backlogs in Redis."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.v1.stream_pb2 import Backlog

KEPT_SECONDS = 0.05
"""The owners publish at most ten times a second."""


@dataclass(frozen=True, slots=True)
class RedisBacklogs:
    """Reads what the owners of the queues publish."""

    redis: RedisClient
    _read: dict[str, tuple[float, Backlog | None]] = field(default_factory=dict)
    """Last answer and its time, by queue."""

    async def read(self, queue: str) -> Backlog | None:
        """The queue's last backlog; None if there is none that can be read."""
        known = self._read.get(queue)
        if known is None or time.monotonic() - known[0] > KEPT_SECONDS:
            value = await self.redis.get(ModelKeys.of(queue).backlog)
            known = self._read[queue] = (time.monotonic(), _parse(value))
        return known[1]


def _parse(value: bytes | None) -> Backlog | None:
    try:
        return None if value is None else Backlog.FromString(value)
    except DecodeError:
        return None
