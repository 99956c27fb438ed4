"""What an earlier owner did for a query, read back from its event stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from uellm.messaging.clock import entry_time_ms
from uellm.messaging.connection import RedisClient
from uellm.messaging.events import decode_event
from uellm.messaging.keys import query_keys
from uellm.messaging.queries import QueryStore
from uellm.v1.query_pb2 import Failure
from uellm.v1.stream_pb2 import Attempt, ProfiledQuery, QueryEvent

from ..domain.pending_query import Progress
from .events import TakenQuery


async def recover(store: QueryStore, queries: Mapping[str, tuple[str, ProfiledQuery]]) -> dict[str, TakenQuery]:
    """What became of queries (by name: entry id, entry) under earlier owners, where anything did."""
    stored = await store.read_many(list(queries))
    begun = [one for one in stored if one is not None and (one.attempts or one.cancel_requested)]
    histories = await _histories(store.redis, [one.name for one in begun])
    return {
        one.name: TakenQuery(
            one.name,
            *queries[one.name],
            one.attempts,
            progress_of(events),
            one.cancel_requested,
            attempts_of(events),
        )
        for one, events in zip(begun, histories, strict=True)
    }


async def _histories(redis: RedisClient, names: Sequence[str]) -> list[list[tuple[int, QueryEvent]]]:
    """The events of each query, with their times in ms."""
    async with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.xrange(query_keys(name).events)
        streams = await pipeline.execute()
    return [list(_events(stream)) for stream in streams]


def _events(stream: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> Iterator[tuple[int, QueryEvent]]:
    for event_id, fields in stream:
        event = decode_event(fields)
        if event is not None:
            yield entry_time_ms(event_id.decode()), event


def progress_of(events: Iterable[tuple[int, QueryEvent]]) -> Progress:
    """Fold a query's events (time in ms, event; oldest first) into what was delivered."""
    token_ids: list[int] = []
    text: list[str] = []
    first_token_ms = 0
    for time_ms, event in events:
        kind = event.WhichOneof("event")
        if kind == "restarted":
            token_ids, text = [], []
        elif kind == "token_delta":
            first_token_ms = first_token_ms or time_ms
            token_ids += event.token_delta.token_ids
            text.append(event.token_delta.text)
    return Progress(tuple(token_ids), "".join(text), first_token_ms)


def attempts_of(events: Iterable[tuple[int, QueryEvent]]) -> tuple[Attempt, ...]:
    """The attempts in a query's events; `end_time` is when each was last heard of.

    How they ended was known to owners that are gone.
    """
    attempts: list[Attempt] = []
    lost = Failure(
        reason="SCHEDULER_LOST", message="the scheduler that dispatched it was lost, and with it how it ended"
    )
    for time_ms, event in events:
        if event.HasField("batched"):
            batched = event.batched
            attempts.append(
                Attempt(attempt=batched.attempt, batch_id=batched.batch_id, deployment=batched.deployment, failure=lost)
            )
        if attempts:
            attempts[-1].end_time.FromMilliseconds(time_ms)
    return tuple(attempts)
