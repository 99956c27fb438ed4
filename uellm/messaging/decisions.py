"""The flight recorder in Redis: written by the owner of a model's queue, read by anybody."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from google.protobuf.message import DecodeError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.messaging.queries import FencedError
from uellm.messaging.scripts import Scripts
from uellm.v1.stream_pb2 import DecisionRecord

KEPT_MS = 24 * 3_600_000
"""How long the last entry is kept after it was written."""
PAGE = 16
"""Entries read at once: one may have 2 MB."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """An entry with its id, `{owner's epoch}-{number}`."""

    decision_id: str
    record: DecisionRecord


@dataclass(slots=True)
class DecisionStore:
    """Entries in the order of their ids, which is that of time."""

    redis: RedisClient
    bytes_kept: int = 32 * 1_048_576
    entries_kept: int = 4_096
    scripts: Scripts = field(init=False)

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.redis)

    async def write(self, queue: str, epoch: int, decision_id: str, record: DecisionRecord) -> None:
        """Append an entry and drop the oldest ones beyond what is kept; again, it changes nothing.

        Raises:
            FencedError: another replica owns the queue.
        """
        keys = ModelKeys.of(queue)
        number = decision_id.partition("-")[2]
        arguments: list[str | bytes | int] = [
            epoch,
            number,
            record.SerializeToString(),
            self.bytes_kept,
            self.entries_kept,
            KEPT_MS,
        ]
        if await self.scripts.record_decision(keys=[keys.owner_epoch, keys.decisions], args=arguments) is None:
            raise FencedError

    async def read(self, queue: str, after: str = "") -> AsyncIterator[StoredDecision]:
        """The entries after an id, or all that are kept, oldest first, up to what is the newest now."""
        key = ModelKeys.of(queue).decisions
        newest = await self.redis.xrevrange(key, count=1)
        start = f"({after}" if after else "-"
        while newest:
            entries = await self.redis.xrange(key, min=start, max=newest[0][0], count=PAGE)
            for stored in _decoded(queue, entries):
                yield stored
            if len(entries) < PAGE:
                return
            start = f"({entries[-1][0].decode()}"

    async def read_back(self, queue: str, before: str = "") -> AsyncIterator[StoredDecision]:
        """The entries before an id, or all that are kept, newest first."""
        key = ModelKeys.of(queue).decisions
        end = f"({before}" if before else "+"
        while entries := await self.redis.xrevrange(key, max=end, count=PAGE):
            for stored in _decoded(queue, entries):
                yield stored
            end = f"({entries[-1][0].decode()}"

    async def find(self, queue: str, decision_ids: Sequence[str]) -> list[StoredDecision]:
        """Those of the entries that are still kept."""
        key = ModelKeys.of(queue).decisions
        async with self.redis.pipeline(transaction=False) as pipeline:
            for decision_id in decision_ids:
                pipeline.xrange(key, min=decision_id, max=decision_id)
            found = await pipeline.execute()
        return [stored for entries in found for stored in _decoded(queue, entries)]


def _decoded(queue: str, entries: list[Any]) -> list[StoredDecision]:
    """Entries that can't be read are left out: replay goes on with the next keyframe."""
    decoded = []
    for entry_id, fields in entries:
        try:
            decoded.append(StoredDecision(entry_id.decode(), DecisionRecord.FromString(fields.get(b"d", b""))))
        except DecodeError:
            log.warning("a recorded decision can't be read", queue=queue, decision=entry_id.decode())
    return decoded
