"""A tenant's queries of one model: listed by acceptance, their outcomes followed as they come.

The submit and finish scripts keep a stream of each; both are bounded, and as old as a finished query's record at most.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from uellm.messaging.clock import entry_time_ms, timestamp
from uellm.messaging.connection import RedisClient
from uellm.messaging.events import EventHub, StoredEvent, entry_number
from uellm.messaging.keys import ModelKeys
from uellm.messaging.queries import SCHEMA_VERSION, QueryStore, StoredQuery
from uellm.v1.stream_pb2 import QueryEvent

CHUNK = 128


class OutcomesLostError(Exception):
    """Outcomes after a cursor are not kept any more."""


@dataclass(frozen=True, slots=True)
class TenantQueries:
    """The queries of one tenant and model."""

    redis: RedisClient
    store: QueryStore
    tenant: str
    model: str

    async def read(self, after: str = "") -> AsyncIterator[StoredQuery]:
        """The queries that were accepted after a queue entry's id, oldest first."""
        position = after or "0-0"
        stream = ModelKeys(self.model).queries(self.tenant)
        while entries := await self.redis.xrange(stream, min=f"({position}", count=CHUNK):
            for record in await self.store.read_many([self._name(fields) for _, fields in entries]):
                if record is not None:  # else it expired after its entry was read
                    yield record
            position = entries[-1][0].decode()

    async def now(self) -> str:
        """The cursor after everything that has ended by now."""
        seconds, microseconds = await self.redis.time()
        last = await self.redis.xrevrange(self._outcomes, count=1)
        known = last[0][0].decode() if last else "0-0"
        return max(known, f"{seconds * 1000 + microseconds // 1000 - 1}-0", key=entry_number)

    async def follow(self, hub: EventHub, cursor: str) -> AsyncGenerator[tuple[str, StoredEvent], None]:
        """Yield name and outcome of every query that ends after the cursor; does not end by itself.

        Raises:
            OutcomesLostError: some are not kept any more.
        """
        await self._check(cursor)
        async with aclosing(hub.follow(self._outcomes, cursor)) as pages:
            async for page in pages:
                records = await self.store.read_many([self._name(fields) for _, fields in page])
                for (entry_id, fields), record in zip(page, records, strict=True):
                    if record is None or record.outcome is None or not _follows(fields, cursor):
                        raise OutcomesLostError
                    cursor = entry_id
                    event = QueryEvent(
                        schema_version=SCHEMA_VERSION,
                        time=timestamp(entry_time_ms(entry_id)),
                        outcome=record.outcome,
                    )
                    yield record.name, StoredEvent(entry_id, event)

    async def _check(self, cursor: str) -> None:
        """Whether a stream that is gone, having expired, may have held anything after a cursor."""
        async with self.redis.pipeline(transaction=True) as pipeline:
            pipeline.time()
            pipeline.xrange(self._outcomes, count=1)
            (seconds, _), oldest = await pipeline.execute()
        if seconds * 1000 - entry_time_ms(cursor) <= self.store.retention_ms:
            return
        for entry_id, fields in oldest:
            if not _after(entry_id, cursor) or (fields[b"p"] and _follows(fields, cursor)):
                return
        raise OutcomesLostError

    @property
    def _outcomes(self) -> str:
        return ModelKeys(self.model).outcomes(self.tenant)

    def _name(self, fields: dict[bytes, bytes]) -> str:
        return f"tenants/{self.tenant}/models/{self.model}/queries/{fields[b'q'].decode()}"


def _follows(fields: dict[bytes, bytes], cursor: str) -> bool:
    """Whether nothing lies between a cursor and the entry with these fields."""
    return not fields[b"p"] or not _after(fields[b"p"], cursor)


def _after(entry_id: bytes, cursor: str) -> bool:
    return entry_number(entry_id.decode()) > entry_number(cursor)
