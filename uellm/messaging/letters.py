"""Dead letters: queries that failed for good, written by the finish script."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import structlog
from google.protobuf.message import DecodeError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.v1.stream_pb2 import DeadLetter, ProfiledQuery, QueryRecord

CHUNK = 16
"""Letters hold prompts, of up to a megabyte: no more of them are read at once."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter with its record and queue entry, and its id in the stream."""

    entry_id: str
    letter: DeadLetter


class DeadLetters:
    """The dead letters of all models."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def read(self, model: str, after: str = "") -> AsyncIterator[StoredLetter]:
        """The letters of a model after a stream id, oldest first; those that can't be read are skipped."""
        stream = ModelKeys(model).dead_letters
        position = after or "0-0"
        while entries := await self._redis.xrange(stream, min=f"({position}", count=CHUNK):
            for entry_id, fields in entries:
                position = entry_id.decode()
                try:
                    letter = DeadLetter.FromString(fields.get(b"d", b""))
                    letter.record.CopyFrom(QueryRecord.FromString(fields.get(b"r", b"")))
                    letter.entry.CopyFrom(ProfiledQuery.FromString(fields.get(b"q", b"")))
                except DecodeError:
                    log.warning("a dead letter can't be read", model=model, entry=position)
                    continue
                yield StoredLetter(position, letter)

    async def find(self, model: str, name: str) -> StoredLetter | None:
        """The newest letter of a query; an id may have been used again after its record had expired."""
        found = None
        async for stored in self.read(model):
            if stored.letter.name == name:
                found = stored
        return found

    async def remove(self, model: str, entry_id: str) -> None:
        """Take a letter off."""
        await self._redis.xdel(ModelKeys(model).dead_letters, entry_id)
