"""Reading event streams: one blocking read per process for all watchers.

A watcher is fed by the hub while it keeps up. One that does not is left behind and reads on by itself from its own
cursor, so that a slow consumer holds nobody back and costs a bounded buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from uellm.messaging.clock import entry_time_ms, timestamp
from uellm.messaging.connection import RedisClient, raise_if_cancelled
from uellm.messaging.gathering import Gathered
from uellm.messaging.keys import query_keys
from uellm.messaging.queries import stored_outcome
from uellm.v1.stream_pb2 import QueryEvent

BEGINNING = "0-0"
PAGE = 256

Entries = list[tuple[str, dict[bytes, bytes]]]
"""Ids and fields of stream entries."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event with the cursor that goes on after it."""

    cursor: str
    event: QueryEvent


@dataclass(slots=True, eq=False)
class _Watcher:
    stream: str
    cursor: str
    behind: bool = True
    buffer: deque[tuple[str, dict[bytes, bytes]]] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class EventHub:
    """Feeds all watchers of one process."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._gathered = Gathered(redis)
        self._watchers: dict[str, set[_Watcher]] = {}
        self._positions: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._reader_id: int | None = None
        self._woken = False
        """Whether the reader was told of changes since it began to read."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[EventHub]:
        """Feed while the block runs."""
        task = asyncio.create_task(self._feed(), name="event-hub")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def watch(self, name: str, cursor: str = "") -> AsyncIterator[StoredEvent]:
        """Yield a query's events after the cursor, waiting for new ones, until its outcome.

        Ends without an outcome if the query's record has expired meanwhile.
        """
        async with contextlib.aclosing(self.follow(query_keys(name).events, cursor or BEGINNING)) as pages:
            async for page in pages:
                for entry_id, fields in page:
                    ended = b"outcome" in fields
                    event = await self._outcome(name) if ended else decode_event(fields)
                    if event is not None:
                        event.time.CopyFrom(timestamp(entry_time_ms(entry_id)))
                        yield StoredEvent(entry_id, event)
                    elif not ended:
                        log.error("an event can't be read; left out", query=name, entry=entry_id)
                    if ended:
                        return

    async def follow(self, stream: str, cursor: str) -> AsyncGenerator[Entries, None]:
        """Yield the entries of a stream after the cursor, some at a time, waiting for new ones; does not end."""
        watcher = _Watcher(stream, cursor)
        await self._join(watcher)
        try:
            while True:
                yield await self._next(watcher)
        finally:
            self._leave(watcher)

    async def _next(self, watcher: _Watcher) -> Entries:
        """The next entries of a watcher, at least one."""
        while True:
            if watcher.behind:
                watcher.behind = False
                watcher.buffer.clear()
                entries = await self._read_after(watcher.stream, watcher.cursor)
                watcher.behind = watcher.behind or len(entries) == PAGE
            else:
                watcher.news.clear()
                if not watcher.buffer:
                    await watcher.news.wait()
                entries = list(watcher.buffer)
                watcher.buffer.clear()
            fresh = [entry for entry in entries if entry_number(entry[0]) > entry_number(watcher.cursor)]
            if fresh:
                watcher.cursor = fresh[-1][0]
                return fresh

    async def _read_after(self, stream: str, cursor: str) -> Entries:
        entries = await self._gathered.execute("XRANGE", stream, f"({cursor}", "+", "COUNT", PAGE)
        return [(entry_id.decode(), fields) for entry_id, fields in entries]

    async def _outcome(self, name: str) -> QueryEvent | None:
        outcome, profile = await self._gathered.execute("HMGET", query_keys(name).record, "outcome", "profile")
        return None if outcome is None else QueryEvent(schema_version=1, outcome=stored_outcome(outcome, profile))

    async def _join(self, watcher: _Watcher) -> None:
        self._watchers.setdefault(watcher.stream, set()).add(watcher)
        self._positions.setdefault(watcher.stream, watcher.cursor)
        self._changed.set()
        if self._reader_id is not None and not self._woken:
            self._woken = True
            await self._gathered.execute("CLIENT", "UNBLOCK", self._reader_id)

    def _leave(self, watcher: _Watcher) -> None:
        watchers = self._watchers.get(watcher.stream, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(watcher.stream, None)
            self._positions.pop(watcher.stream, None)

    async def _feed(self) -> None:
        while True:
            raise_if_cancelled()
            try:
                async with self._redis.client() as reader:
                    self._reader_id = int(await reader.client_id())
                    await self._feed_from(reader)
            except (RedisError, OSError) as error:
                log.warning("events can't be read", error=str(error))
                await asyncio.sleep(0.5)
            except Exception:
                # Without this loop every Watch would wait for ever.
                log.exception("events can't be read")
                await asyncio.sleep(0.5)
            finally:
                self._reader_id = None

    async def _feed_from(self, reader: RedisClient) -> None:
        while True:
            raise_if_cancelled()
            if not self._positions:
                self._changed.clear()
                await self._changed.wait()
            self._woken = False
            answer = await reader.xread(dict(self._positions), block=250, count=PAGE)
            for stream, entries in answer or ():
                self._hand_out(stream.decode(), entries)

    def _hand_out(self, stream: str, entries: list[Any]) -> None:
        if stream not in self._positions:
            return
        decoded = [(entry_id.decode(), fields) for entry_id, fields in entries]
        self._positions[stream] = decoded[-1][0]
        for watcher in self._watchers.get(stream, ()):
            if len(watcher.buffer) + len(decoded) > PAGE:
                watcher.behind = True
            elif not watcher.behind:
                watcher.buffer.extend(decoded)
            watcher.news.set()


def decode_event(fields: Mapping[bytes, bytes]) -> QueryEvent | None:
    """The event of a stream's entry; None for the mark of the outcome, and for what can't be read."""
    try:
        return QueryEvent.FromString(fields[b"e"])
    except (KeyError, DecodeError):
        return None


def entry_number(entry_id: str) -> tuple[int, int]:
    """The id of an entry as numbers, in the stream's order."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)
