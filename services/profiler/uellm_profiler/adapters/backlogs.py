"""Predicted backlogs in Redis."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.v1.stream_pb2 import Backlog


@dataclass(frozen=True, slots=True)
class RedisBacklogs:
    """Reads what the owners of the queues publish."""

    redis: RedisClient

    async def read(self, model: str) -> Backlog | None:
        """The model's last backlog; None if there is none that can be read."""
        value = await self.redis.get(ModelKeys(model).backlog)
        try:
            return None if value is None else Backlog.FromString(value)
        except DecodeError:
            return None
