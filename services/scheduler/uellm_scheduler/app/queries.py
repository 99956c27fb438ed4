"""What clients ask about queries. Any replica can answer; only the owner's knows the batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import cast

from uellm.messaging.clock import Clock, entry_time_ms, timestamp
from uellm.messaging.connection import RedisClient
from uellm.messaging.costs import CostStore
from uellm.messaging.deployments import DeploymentDirectory, queues_of
from uellm.messaging.events import EventHub, StoredEvent
from uellm.messaging.keys import MODELS, ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import QueryStore, StoredQuery
from uellm.rpc.errors import FieldViolation, InvalidArgumentError, NotFoundError
from uellm.rpc.names import QueryName
from uellm.rpc.violations import Violations
from uellm.v1.query_pb2 import QueryState
from uellm.v1.scheduler_pb2 import GetQueueResponse, QueryStatus, RunningBatch
from uellm.v1.stream_pb2 import Backlog

from .costs import cost_model_status
from .ownership import Ownership

MAX_TARGETS = 1_024
BUFFERED_EVENTS = 64


class Queries:
    """Use cases of the servicer."""

    def __init__(
        self,
        redis: RedisClient,
        store: QueryStore,
        hub: EventHub,
        clock: Clock,
        leases: LeaseKeeper,
        directory: DeploymentDirectory,
        ownership: Ownership,
    ) -> None:
        self._redis = redis
        self._store = store
        self._hub = hub
        self._clock = clock
        self._leases = leases
        self._directory = directory
        self._costs = CostStore(redis)
        self._ownership = ownership

    async def status(self, name: str) -> QueryStatus:
        """Where a query stands. Raises InvalidArgumentError, NotFoundError."""
        QueryName.parse(name)
        return status_of(_found(name, await self._store.read(name)))

    async def cancel(self, name: str) -> QueryState:
        """Note that a query is to end; returns its state. Raises InvalidArgumentError, NotFoundError."""
        QueryName.parse(name)
        state = await self._store.cancel(name)
        if state is None:
            raise _not_found(name)
        return cast(QueryState, state)

    async def watch(self, targets: Sequence[tuple[str, str]]) -> AsyncGenerator[tuple[str, StoredEvent], None]:
        """Events of several queries (name, cursor), as they come, until each has its outcome.

        Raises:
            InvalidArgumentError: a name or cursor is malformed, or there are none or too many.
            NotFoundError: one of the queries does not exist.
        """
        _check_targets(targets)
        names = [name for name, _ in targets]
        for name, stored in zip(names, await self._store.read_many(names), strict=True):
            _found(name, stored)
        if len(targets) == 1:
            async for event in self._hub.watch(*targets[0]):
                yield names[0], event
            return
        async for pair in self._merge(targets):
            yield pair

    async def queue(self, model: str) -> GetQueueResponse:
        """What waits and runs for a model. Raises InvalidArgumentError, NotFoundError."""
        violations = Violations()
        violations.model_identifier("model", model)
        violations.raise_if_any()
        if not await self._redis.sismember(MODELS, model):
            raise NotFoundError("model", model, f"model {model!r} was never deployed", reason="MODEL_NOT_DEPLOYED")
        response = GetQueueResponse()
        for queue in await queues_of(self._redis, model):
            await self._add_shard(response, queue)
        plans = {record.name: record.plan_hash for record in self._directory.of_model(model)}
        states = sorted(await self._costs.read(model), key=lambda state: state.deployment)
        current = [state for state in states if plans.get(state.deployment) == state.plan_hash]
        for state in current:
            with contextlib.suppress(ValueError, ArithmeticError):
                response.cost_models.append(cost_model_status(state))
        return response

    async def _add_shard(self, response: GetQueueResponse, queue: str) -> None:
        owner, epoch = await self._leases.holder(queue)
        keys = ModelKeys.of(queue)
        backlog = Backlog.FromString(await self._redis.get(keys.backlog) or b"")
        if not response.shards:
            response.policy, response.owner, response.owner_epoch = backlog.policy, owner, epoch
        response.shards.add(
            shard=keys.shard, queued=backlog.queued, running=backlog.running, owner=owner, owner_epoch=epoch
        )
        response.queued += backlog.queued
        response.running += backlog.running
        if backlog.HasField("oldest_accept_time"):
            waited = self._clock.now_ms() - backlog.oldest_accept_time.ToMilliseconds()
            response.oldest_wait.FromMilliseconds(max(0, waited, response.oldest_wait.ToMilliseconds()))
        mine = self._ownership.owner(queue)
        if mine is not None:
            response.batches.extend(
                RunningBatch(
                    batch_id=batch.batch_id,
                    deployment=batch.deployment.name,
                    names=list(batch.rows),
                    rows=batch.rows_at_start,
                    dispatch_time=timestamp(batch.dispatch_ms),
                )
                for batch in mine.core.flight.batches.values()
            )

    async def _merge(self, targets: Sequence[tuple[str, str]]) -> AsyncIterator[tuple[str, StoredEvent]]:
        events: asyncio.Queue[tuple[str, StoredEvent | None]] = asyncio.Queue(BUFFERED_EVENTS)

        async def follow(name: str, cursor: str) -> None:
            async for event in self._hub.watch(name, cursor):
                await events.put((name, event))
            await events.put((name, None))

        async with asyncio.TaskGroup() as tasks:
            followers = [tasks.create_task(follow(name, cursor)) for name, cursor in targets]
            try:
                left = len(followers)
                while left:
                    name, event = await events.get()
                    if event is None:
                        left -= 1
                    else:
                        yield name, event
            finally:
                for follower in followers:
                    follower.cancel()


def _check_targets(targets: Sequence[tuple[str, str]]) -> None:
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise InvalidArgumentError([FieldViolation("targets", f"must name 1 to {MAX_TARGETS} queries")])
    for index, (name, cursor) in enumerate(targets):
        QueryName.parse(name, f"targets[{index}].name")
        check_cursor(f"targets[{index}].cursor", cursor)


def check_cursor(field: str, cursor: str) -> None:
    """Raises InvalidArgumentError for what can't be a cursor."""
    if cursor and not all(part.isdecimal() and len(part) < 20 for part in cursor.split("-", 1)):
        raise InvalidArgumentError([FieldViolation(field, "must be empty or a cursor of an earlier response")])


def _found(name: str, stored: StoredQuery | None) -> StoredQuery:
    if stored is None:
        raise _not_found(name)
    return stored


def _not_found(name: str) -> NotFoundError:
    return NotFoundError("query", name, f"there is no query {name!r}, or not any more: outcomes are kept for a while")


def status_of(stored: StoredQuery) -> QueryStatus:
    """Where a query stands, as it is told."""
    return QueryStatus(
        name=stored.name,
        state=cast(QueryState, stored.state),
        dispatch_count=stored.attempts,
        accept_time=timestamp(entry_time_ms(stored.entry_id)),
        outcome=stored.outcome,
    )
