"""What clients ask of the flight recorder."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence

import numpy as np

from uellm.messaging.clock import Clock, entry_time_ms
from uellm.messaging.connection import RedisClient
from uellm.messaging.decisions import DecisionStore, StoredDecision
from uellm.messaging.keys import MODELS, query_keys, queue_name
from uellm.messaging.queries import QueryStore, StoredQuery
from uellm.rpc.errors import NotFoundError
from uellm.rpc.names import QueryName
from uellm.rpc.violations import Violations, quote
from uellm.v1.query_pb2 import QUERY_STATE_REJECTED
from uellm.v1.scheduler_pb2 import ExplainQueryResponse
from uellm.v1.stream_pb2 import DecisionRecord, QueryEvent

from ..domain.pending_query import NEVER
from .explanation import Attempt, Others, Story, explain
from .ownership import Ownership

MOST_DECISIONS = 1_024
"""Read to say who went before a query."""
_DECISION_ID = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)


class Decisions:
    """Use cases of the servicer. Any replica can answer."""

    def __init__(self, redis: RedisClient, store: QueryStore, clock: Clock, ownership: Ownership) -> None:
        self._redis = redis
        self._store = store
        self._decisions = DecisionStore(redis)
        self._clock = clock
        self._ownership = ownership

    async def read(self, model: str, shard: int, after: str) -> AsyncIterator[StoredDecision]:
        """The entries after an id ("": all) up to the newest. Raises InvalidArgumentError, NotFoundError."""
        violations = Violations()
        violations.model_identifier("model", model)
        if after and not _DECISION_ID.fullmatch(after):
            violations.add("after_decision_id", f"must be empty or the id of a decision; got {quote(after)}")
        violations.raise_if_any()
        if not await self._redis.sismember(MODELS, model):
            raise NotFoundError("model", model, f"model {model!r} was never deployed", reason="MODEL_NOT_DEPLOYED")
        async for stored in self._decisions.read(queue_name(model, shard), after):
            yield stored

    async def explain(self, name: str) -> ExplainQueryResponse:
        """Why a query was served when it was, or refused. Raises InvalidArgumentError, NotFoundError."""
        QueryName.parse(name)
        stored = await self._store.read(name)
        if stored is None:
            message = f"there is no query {name!r}, or not any more: outcomes are kept for a while"
            raise NotFoundError("query", name, message)
        outcome, queue = stored.outcome, stored.queue
        events = await self._dispatches(name)
        refused = [outcome.decision_id] if outcome is not None and outcome.state == QUERY_STATE_REJECTED else []
        named = [event.batched.decision_id for _, event in events] + refused
        found = {one.decision_id: one.record for one in await self._decisions.find(queue, [n for n in named if n])}
        attempts = tuple(_attempt(time_ms, event, found) for time_ms, event in events)
        others, deadline = await self._before(stored, named, found)
        owner = self._ownership.owner(queue)
        story = Story(
            accept_ms=entry_time_ms(stored.entry_id),
            now_ms=self._clock.now_ms(),
            profile=stored.profile,
            attempts=attempts,
            others=others,
            deadline_seconds=deadline if outcome is not None else await self._deadline_of(name),
            outcome=outcome,
            waits_again=owner is not None and bool(attempts) and name in owner.core.pending,
            refusing_policy=found[refused[0]].policy if refused and refused[0] in found else "",
        )
        decisions = [_without_table(found[one]) for one in named if one in found]
        return ExplainQueryResponse(decisions=decisions, explanation=explain(story))

    async def _dispatches(self, name: str) -> list[tuple[int, QueryEvent]]:
        """When a query was dispatched, and how."""
        stream = await self._redis.xrange(query_keys(name).events)
        events = [
            (entry_time_ms(entry_id.decode()), QueryEvent.FromString(fields[b"e"]))
            for entry_id, fields in stream
            if b"e" in fields
        ]
        return [(time_ms, event) for time_ms, event in events if event.HasField("batched")]

    async def _before(
        self, stored: StoredQuery, named: Sequence[str], found: dict[str, DecisionRecord]
    ) -> tuple[Others, float | None]:
        """Who was dispatched while the query waited for the first decision about it; its deadline in seconds."""
        accept_ms = entry_time_ms(stored.entry_id)
        first = named[0] if named else ""
        deadline = _deadline_in(found[first], stored.name, accept_ms) if first in found else None
        decisions = queries = read = 0
        # A query that ended without a decision waited until its end.
        end_ms = stored.outcome.timing.finish_time.ToMilliseconds() if stored.outcome and not named else NEVER
        oldest, time_ms = first, NEVER
        if first or not named:
            async for one in self._decisions.read_back(stored.queue, first):
                read, oldest, time_ms = read + 1, one.decision_id, one.record.time.ToMilliseconds()
                if time_ms < accept_ms or read > MOST_DECISIONS:
                    break
                if deadline is None:
                    deadline = _deadline_in(one.record, stored.name, accept_ms)
                if one.record.batches and time_ms <= end_ms:
                    decisions += 1
                    queries += sum(len(batch.names) for batch in one.record.batches)
        # An owner's first entry has number 1: nothing of it was dropped.
        complete = time_ms < accept_ms or oldest.endswith("-1") or not (oldest or named)
        return Others(decisions, queries, complete), deadline

    async def _deadline_of(self, name: str) -> float | None:
        """Deadline of a query without an outcome, in seconds."""
        record = await self._store.payload(name)
        if record is None or not record.query.slo.HasField("completion"):
            return None
        return float(record.query.slo.completion.ToMilliseconds()) / 1000


def _attempt(time_ms: int, event: QueryEvent, found: dict[str, DecisionRecord]) -> Attempt:
    batched = event.batched
    record = found.get(batched.decision_id)
    policy = record.policy if record is not None else ""
    return Attempt(time_ms, batched.batch_id, batched.batch_rows, batched.deployment, policy)


def _deadline_in(record: DecisionRecord, name: str, accept_ms: int) -> float | None:
    """Deadline of a query, in seconds from acceptance, if this entry tells of it."""
    if name not in record.names:
        return None
    deadlines = np.frombuffer(record.columns.get("deadline_ms", b"\0" * 8 * len(record.names)), "<i8")
    deadline = int(deadlines[list(record.names).index(name)])
    return (deadline - accept_ms) / 1000 if accept_ms <= deadline < NEVER else None


def _without_table(record: DecisionRecord) -> DecisionRecord:
    """A decision without what was seen."""
    return DecisionRecord(
        schema_version=record.schema_version,
        time=record.time,
        policy=record.policy,
        policy_version=record.policy_version,
        queued=record.queued,
        batches=record.batches,
        refusals=record.refusals,
    )
