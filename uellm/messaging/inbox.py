"""The owner's side of a queue: takes over what is there, then reads what comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from redis.exceptions import ResponseError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import GROUP, ModelKeys
from uellm.v1.stream_pb2 import ControlMessage, ProfiledQuery


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a queue. An entry that can't be read has neither query nor control message."""

    entry_id: str
    query: ProfiledQuery | None = None
    control: ControlMessage | None = None


class Inbox:
    """Reads a queue in the name of one replica."""

    def __init__(self, redis: RedisClient, queue: str, replica: str) -> None:
        self._redis = redis
        self._queue = ModelKeys.of(queue).queue
        self._replica = replica
        self._heard = "0-0"
        """Entries up to this one were returned."""
        self._unsure = False
        """Whether entries may have been handed to this replica in an answer that was lost."""

    async def take_over(self, page: int = 1_000) -> list[Entry]:
        """Claim all that earlier owners took and did not finish. Their writes are fenced, so it can be at once."""
        try:
            await self._redis.xgroup_create(self._queue, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        entries: list[Entry] = []
        start: Any = "0-0"
        while True:
            start, claimed, *_ = await self._redis.xautoclaim(
                self._queue, GROUP, self._replica, min_idle_time=0, start_id=start, count=page
            )
            entries += [_entry(entry_id, fields) for entry_id, fields in claimed if fields]
            if start in (b"0-0", "0-0"):
                break
        await self._forget_others()
        if entries:
            self._heard = entries[-1].entry_id
        return entries

    async def read(self, count: int = 256, block_ms: int = 1_000) -> list[Entry]:
        """Wait for new entries, at most `block_ms` milliseconds."""
        unsure, self._unsure = self._unsure, True
        answer = await self._redis.xreadgroup(
            GROUP, self._replica, {self._queue: self._heard if unsure else ">"}, count=count, block=block_ms
        )
        found = [pair for _, entries in answer or () for pair in entries]
        # Once it has read again what it was handed, it goes on with what is new.
        self._unsure = unsure and bool(found)
        if found:
            self._heard = found[-1][0].decode()
        return [_entry(entry_id, fields) for entry_id, fields in found if fields]

    async def strays(self, count: int = 256) -> list[Entry]:
        """Claim what a former owner was handed after the takeover: nothing fences a read that waits in the server."""
        holders = (await self._redis.xpending(self._queue, GROUP))["consumers"]
        entries: list[Entry] = []
        for name in (holder["name"].decode() for holder in holders):
            if name == self._replica:
                continue
            held = await self._redis.xpending_range(self._queue, GROUP, "-", "+", count, consumername=name)
            ids = [one["message_id"] for one in held]
            claimed = await self._redis.xclaim(self._queue, GROUP, self._replica, 0, ids) if ids else []
            entries += [_entry(entry_id, fields) for entry_id, fields in claimed if fields]
        return entries

    async def acknowledge(self, entry_id: str) -> None:
        """Take a control message, or an entry that can't be read, off the queue."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xack(self._queue, GROUP, entry_id)
            pipeline.xdel(self._queue, entry_id)
            await pipeline.execute()

    async def _forget_others(self) -> None:
        for consumer in await self._redis.xinfo_consumers(self._queue, GROUP):
            name = consumer["name"].decode()
            if name != self._replica and not consumer["pending"]:
                await self._redis.xgroup_delconsumer(self._queue, GROUP, name)


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    decoded = entry_id.decode()
    try:
        if b"q" in fields:
            return Entry(decoded, query=ProfiledQuery.FromString(fields[b"q"]))
        if b"c" in fields:
            return Entry(decoded, control=ControlMessage.FromString(fields[b"c"]))
    except DecodeError:
        pass
    return Entry(decoded)
