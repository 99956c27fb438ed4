"""The life of a query in Redis: submitted, dispatched, answered piece by piece, finished once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uellm.messaging.connection import RedisClient
from uellm.messaging.gathering import Gathered
from uellm.messaging.keys import GROUP, ModelKeys, model_of, query_keys, tenant_of
from uellm.messaging.scripts import Scripts
from uellm.v1.query_pb2 import QUERY_STATE_QUEUED, QUERY_STATE_RUNNING, Outcome, QueryState, ResourceProfile
from uellm.v1.stream_pb2 import (
    Admitted,
    ControlMessage,
    DeadLetter,
    Observation,
    ProfiledQuery,
    QueryEvent,
    QueryRecord,
)

SCHEMA_VERSION = 1
OBSERVATIONS_KEPT = 10_000
OUTCOMES_KEPT = 100_000
"""Of one tenant and model: of so many finished queries names can be listed and outcomes watched."""
DEAD_LETTERS_KEPT = 1_000
DEAD_LETTERS_MS = 7 * 86_400_000
"""Dead letters expire so long after the last one."""


class FencedError(Exception):
    """The writer's lease is not the newest: another replica owns the queue now."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What `QueryStore.submit` writes."""

    name: str
    body_hash: str
    record: QueryRecord
    entry: ProfiledQuery
    queue: str = ""
    """Which of its model's; empty: the first."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A query that has a record and will have one outcome."""

    entry_id: str
    depth: int
    """Queries waiting or running, this one included; 0 where it had been submitted before."""
    profile: ResourceProfile
    created: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """The name is taken by a query with another body."""


@dataclass(frozen=True, slots=True)
class Full:
    """The queue holds as many queries as it may."""

    depth: int


@dataclass(frozen=True, slots=True)
class DispatchRow:
    """One row of a batch that begins."""

    name: str
    attempts: int
    """Attempts so far; the dispatch becomes attempt `attempts + 1`."""
    event: QueryEvent


@dataclass(frozen=True, slots=True)
class DispatchAnswer:
    """What became of one row."""

    status: str
    """`ok`, `gone` (no record, or finished), `cancelled` (is to end) or `stale` (attempts differ)."""
    record: QueryRecord | None = None
    attempts: int = 0
    """The true number of attempts, for `stale`."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event of one running attempt."""

    name: str
    attempt: int
    event: QueryEvent


@dataclass(frozen=True, slots=True)
class FinishRow:
    """One query that ends."""

    name: str
    entry_id: str
    attempts: int
    outcome: Outcome
    """Without a profile, like the observation: the store knows it."""
    last_event: QueryEvent | None = None
    observation: Observation | None = None
    dead_letter: DeadLetter | None = None
    """Of a query that failed; the store adds its payload and its queue entry."""


@dataclass(frozen=True, slots=True)
class StoredQuery:
    """A query's record as it lies in Redis."""

    name: str
    entry_id: str
    state: int
    """`QueryState`."""
    attempts: int
    profile: ResourceProfile
    outcome: Outcome | None
    cancel_requested: bool
    body_hash: str
    queue: str = ""
    """Name of the queue that it was put on."""


@dataclass(slots=True)
class QueryStore:
    """Atomic operations on queries. Everything that an owner writes is fenced by the epoch of its lease."""

    redis: RedisClient
    retention_ms: int = 3_600_000
    """How long a finished query can still be read."""
    outcomes_kept: int = OUTCOMES_KEPT
    scripts: Scripts = field(init=False)
    gathered: Gathered = field(init=False)

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.redis)
        self.gathered = Gathered(self.redis)

    async def submit(self, submission: Submission, depth_limit: int) -> Accepted | Conflict | Full:
        """Write record and queue entry together, or find the query that is there already."""
        keys, tenant = query_keys(submission.name), tenant_of(submission.name)
        queue = submission.queue or model_of(submission.name)
        owned = ModelKeys.of(queue)
        profile = submission.entry.profile
        admitted = QueryEvent(schema_version=SCHEMA_VERSION, admitted=Admitted(profile=profile))
        answer = await self.gathered.script(
            self.scripts.submit,
            [keys.record, owned.queue, owned.depth, keys.events, owned.queries(tenant), owned.outcomes(tenant)],
            [
                submission.body_hash,
                submission.record.SerializeToString(),
                profile.SerializeToString(),
                submission.entry.SerializeToString(),
                admitted.SerializeToString(),
                depth_limit,
                QUERY_STATE_QUEUED,
                submission.name.rpartition("/")[2],
                self.outcomes_kept,
                queue,
            ],
        )
        match answer[0]:
            case b"created":
                return Accepted(answer[1].decode(), int(answer[2]), profile, created=True)
            case b"exists":
                return Accepted(answer[1].decode(), 0, ResourceProfile.FromString(answer[2]), created=False)
            case b"full":
                return Full(int(answer[1]))
            case _:
                return Conflict()

    async def dispatch(self, queue: str, epoch: int, rows: Sequence[DispatchRow]) -> list[DispatchAnswer]:
        """Begin an attempt for each row.

        Raises:
            FencedError: another replica owns the queue.
        """
        arguments: list[Any] = [epoch, QUERY_STATE_RUNNING]
        for row in rows:
            arguments += [row.attempts, row.event.SerializeToString()]
        answers = await self.scripts.dispatch(keys=self._keys(queue, [row.name for row in rows]), args=arguments)
        return [_dispatch_answer(answer) for answer in _unfenced(answers)]

    async def append(self, queue: str, epoch: int, rows: Sequence[EventRow]) -> list[str]:
        """Append one event to each query; returns each event's id, or "" where the attempt is over.

        Raises:
            FencedError: another replica owns the queue.
        """
        arguments: list[Any] = [epoch]
        for row in rows:
            arguments += [row.attempt, row.event.SerializeToString()]
        ids = await self.scripts.append(keys=self._keys(queue, [row.name for row in rows]), args=arguments)
        return [event_id.decode() for event_id in _unfenced(ids)]

    async def is_last_event(self, row: EventRow) -> bool:
        """Whether the event is the last one of its query: tells if an `append` ran whose answer was lost."""
        last = await self.redis.xrevrange(query_keys(row.name).events, count=1)
        return bool(last) and last[0][1].get(b"e") == row.event.SerializeToString()

    async def finish(self, queue: str, epoch: int, rows: Sequence[FinishRow]) -> list[str]:
        """Write each query's one outcome; answers per row `ok`, `finished`, `stale` or `gone`.

        Raises:
            FencedError: another replica owns the queue.
        """
        keys = ModelKeys.of(queue)
        key_list = [keys.owner_epoch, keys.queue, keys.depth, keys.observations, keys.dead_letters]
        arguments: list[Any] = [epoch, GROUP, self.retention_ms, OBSERVATIONS_KEPT]
        arguments += [DEAD_LETTERS_KEPT, DEAD_LETTERS_MS, self.outcomes_kept]
        for row in rows:
            query, tenant = query_keys(row.name), tenant_of(row.name)
            key_list += [query.record, query.events, keys.queries(tenant), keys.outcomes(tenant)]
            arguments += [
                row.name.rpartition("/")[2],
                row.entry_id,
                row.attempts,
                row.outcome.state,
                row.outcome.SerializeToString(),
                row.last_event.SerializeToString() if row.last_event else b"",
                row.observation.SerializeToString() if row.observation else b"",
                row.dead_letter.SerializeToString() if row.dead_letter else b"",
            ]
        answers = await self.scripts.finish(keys=key_list, args=arguments)
        return [answer.decode() for answer in _unfenced(answers)]

    async def cancel(self, name: str) -> int | None:
        """Note that a query is to end; returns its state (`QueryState`), None if there is no such query."""
        message = ControlMessage(schema_version=SCHEMA_VERSION, cancel_query=name)
        # A query stays on the queue that it was put on. A record from before there were shards names none.
        queue = await self.redis.hget(query_keys(name).record, "queue")
        keys = ModelKeys.of(queue.decode() if queue else model_of(name))
        state = await self.scripts.cancel(
            keys=[query_keys(name).record, keys.queue],
            args=[message.SerializeToString()],
        )
        return None if state is None else int(state)

    async def read(self, name: str) -> StoredQuery | None:
        """Read a query's record; None if there is none, or not any more."""
        return (await self.read_many([name]))[0]

    async def read_many(self, names: Sequence[str]) -> list[StoredQuery | None]:
        """Read the records of several queries in one round trip."""
        fields = ["entry_id", "state", "attempts", "profile", "outcome", "cancel", "body_hash", "queue"]
        async with self.redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.hmget(query_keys(name).record, fields)
            found = await pipeline.execute()
        return [_stored(name, values) for name, values in zip(names, found, strict=True)]

    async def payload(self, name: str) -> QueryRecord | None:
        """What engines are given of a query; None once it has its outcome, or if there is none."""
        stored = await self.redis.hget(query_keys(name).record, "payload")
        return None if stored is None else QueryRecord.FromString(stored)

    @staticmethod
    def _keys(queue: str, names: Sequence[str]) -> list[str]:
        keys = [ModelKeys.of(queue).owner_epoch]
        for name in names:
            query = query_keys(name)
            keys += [query.record, query.events]
        return keys


def stored_outcome(outcome: bytes, profile: bytes | None) -> Outcome:
    """An outcome as its record holds it: the profile is another field."""
    message = Outcome.FromString(outcome)
    message.profile.CopyFrom(ResourceProfile.FromString(profile or b""))
    return message


def state_name(state: int) -> str:
    """`QUERY_STATE_QUEUED` as `queued`."""
    name: str = QueryState.Name(state)
    return name.removeprefix("QUERY_STATE_").lower()


def _unfenced(answer: Any) -> list[Any]:
    if answer is None:
        raise FencedError
    rows: list[Any] = answer
    return rows


def _dispatch_answer(answer: list[bytes]) -> DispatchAnswer:
    status = answer[0].decode()
    if status == "ok":
        return DispatchAnswer(status, record=QueryRecord.FromString(answer[1]))
    if status == "stale":
        return DispatchAnswer(status, attempts=int(answer[1]))
    return DispatchAnswer(status)


def _stored(name: str, values: list[bytes | None]) -> StoredQuery | None:
    entry_id, state, attempts, profile, outcome, cancel, body_hash, queue = values
    if entry_id is None or state is None:
        return None
    return StoredQuery(
        name=name,
        entry_id=entry_id.decode(),
        state=int(state),
        attempts=int(attempts or 0),
        profile=ResourceProfile.FromString(profile or b""),
        outcome=None if outcome is None else stored_outcome(outcome, profile),
        cancel_requested=cancel is not None,
        body_hash=(body_hash or b"").decode(),
        queue=(queue or b"").decode() or model_of(name),
    )
