"""The shell around the core: one model's queue, owned for as long as the lease holds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from uellm.messaging.clock import Clock, entry_time_ms
from uellm.messaging.connection import RedisClient, raise_if_cancelled
from uellm.messaging.costs import CostStore
from uellm.messaging.decisions import DecisionStore
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.inbox import Entry, Inbox
from uellm.messaging.keys import ModelKeys, query_keys
from uellm.messaging.lease import Lease
from uellm.messaging.queries import QueryStore
from uellm.v1.stream_pb2 import Backlog, DeploymentRecord, ProfiledQuery, QueryEvent

from ..domain.backlog import backlog_of
from ..domain.policy import Policy
from . import effects as do
from . import events as on
from .core import SchedulerCore
from .limits import CoreLimits
from .metrics import Metrics
from .ports import EngineError, Engines
from .recovery import attempts_of, progress_of
from .writer import AWAY, Writer

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.25
BACKLOG_SECONDS = 0.1
BACKLOG_TIME_TO_LIVE_MS = 5_000
PROBE_SECONDS = 0.25
HAND_OVER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What owners share within a process."""

    redis: RedisClient
    store: QueryStore
    clock: Clock
    directory: DeploymentDirectory
    engines: Engines
    replica: str
    policy: Policy
    """Where none was chosen."""
    policies: Mapping[str, Policy]
    limits: CoreLimits
    metrics: Metrics


class QueueOwner:
    """Feeds the core and carries out what it wants."""

    def __init__(self, lease: Lease, around: Surroundings) -> None:
        self.lease = lease
        self._around = around
        self._inbox = Inbox(around.redis, lease.model, around.replica)
        self.core = SchedulerCore(lease.model, lease.epoch, around.policy, around.limits, seed=lease.epoch)
        self._costs = CostStore(around.redis)
        decisions = DecisionStore(around.redis, around.limits.decisions_bytes, around.limits.decisions_kept)
        self._writer = Writer(lease.model, lease.epoch, around.store, self._costs, decisions, self._inbox, self.tell)
        self._batches: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Own the queue until cancelled.

        Raises:
            ExceptionGroup: with a FencedError, if another replica owns the queue.
        """
        listener = self._follow_deployments
        self._around.directory.on_change(listener)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._follow_deployments()
                tasks.create_task(self._writer.run())
                tasks.create_task(self._read())
                tasks.create_task(self._tick())
                tasks.create_task(self._publish())
        finally:
            self._around.directory.off_change(listener)
            self._tasks = None

    async def hand_over(self) -> None:
        """End what runs, read the engines' streams to their end, and write what is to be written; bounded in time."""
        self.tell(on.HandOver())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_OVER_SECONDS):
                while self._batches or not self._writer.idle:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    def tell(self, event: on.Event) -> None:
        """Give the core an event and have its wishes carried out."""
        if self._tasks is None:
            return
        for effect in self.core.step(event, self._around.clock.now_ms()):
            match effect:
                case do.RunBatch():
                    self._batches[effect.batch_id] = self._tasks.create_task(self._run_batch(effect))
                case do.CancelRows():
                    self._tasks.create_task(self._cancel_rows(effect))
                case do.AbandonBatch():
                    self._batches[effect.batch_id].cancel()
                case do.AwaitEngine():
                    self._tasks.create_task(self._await_engine(effect.deployment))
                case _:
                    self._around.metrics.count(self.lease.model, effect)
                    self._writer.put(effect)
        self._woken.set()

    # --- the queue ---

    async def _read(self) -> None:
        entries = await _patiently(self._inbox.take_over)
        log.info("took the queue over", model=self.lease.model, epoch=self.lease.epoch, entries=len(entries))
        self.tell(on.CostModelsFound(tuple(await _patiently(lambda: self._costs.read(self.lease.model)))))
        self._hear(entries, await _patiently(lambda: self._recover(entries)))
        while True:
            self._hear(await _patiently(self._inbox.read), {})

    def _hear(self, entries: list[Entry], history: dict[str, on.TakenQuery]) -> None:
        taken = []
        for entry in entries:
            if entry.query is not None and entry.query.name:
                fresh = on.TakenQuery(entry.query.name, entry.entry_id, entry.query)
                taken.append(history.get(entry.query.name, fresh))
            elif entry.control is not None and entry.control.cancel_query:
                # In order: the query that it names may stand before it.
                self.tell(on.QueriesTaken(tuple(taken)))
                taken = []
                self.tell(on.CancelWanted(entry.control.cancel_query, entry.entry_id))
            else:
                log.error("an entry of the queue can't be read; dropped", model=self.lease.model, entry=entry.entry_id)
                self._writer.put(do.AcknowledgeEntry(entry.entry_id))
        if taken:
            self.tell(on.QueriesTaken(tuple(taken)))

    async def _recover(self, entries: list[Entry]) -> dict[str, on.TakenQuery]:
        """What became, under earlier owners, of the queries that were taken over."""
        queries = {entry.query.name: (entry.entry_id, entry.query) for entry in entries if entry.query is not None}
        found = await self._around.store.read_many(list(queries))
        history = {}
        for stored in found:
            if stored is None or (not stored.attempts and not stored.cancel_requested):
                continue
            entry_id, query = queries[stored.name]
            history[stored.name] = await self._history(entry_id, query, stored.attempts, stored.cancel_requested)
        return history

    async def _history(self, entry_id: str, query: ProfiledQuery, attempts: int, cancel: bool) -> on.TakenQuery:
        stream = await self._around.redis.xrange(query_keys(query.name).events)
        events = [
            (entry_time_ms(event_id.decode()), QueryEvent.FromString(fields[b"e"]))
            for event_id, fields in stream
            if b"e" in fields
        ]
        return on.TakenQuery(query.name, entry_id, query, attempts, progress_of(events), cancel, attempts_of(events))

    # --- engines ---

    async def _run_batch(self, batch: do.RunBatch) -> None:
        error = ""
        try:
            async with aclosing(self._around.engines.run(batch, self.lease.epoch)) as stream:
                async for news in stream:
                    self.tell(news)
        except EngineError as problem:
            error = str(problem)
            log.warning("a batch was lost", batch=batch.batch_id, deployment=batch.deployment.name, error=error)
        finally:
            self._batches.pop(batch.batch_id, None)
        self.tell(on.BatchEnded(batch.batch_id, error))

    async def _cancel_rows(self, effect: do.CancelRows) -> None:
        try:
            await self._around.engines.cancel(effect.deployment, effect.batch_id, effect.names)
        except EngineError as error:
            log.warning("rows can't be cancelled", batch=effect.batch_id, error=str(error))

    async def _await_engine(self, deployment: DeploymentRecord) -> None:
        while not await self._around.engines.ready(deployment):  # noqa: ASYNC110
            await asyncio.sleep(PROBE_SECONDS)
        self.tell(on.EngineReady(deployment.name))

    def _follow_deployments(self) -> None:
        self.tell(on.DeploymentsChanged(tuple(self._around.directory.of_model(self.lease.model))))

    # --- time ---

    async def _tick(self) -> None:
        while True:
            pause = TICK_SECONDS
            if self.core.wake_ms is not None:
                pause = min(pause, max(0.0, (self.core.wake_ms - self._around.clock.now_ms()) / 1000))
            await asyncio.sleep(pause)
            self.tell(on.Tick())

    async def _publish(self) -> None:
        """Publish the backlog when it changed, and once a second; at most ten times a second."""
        while True:
            raise_if_cancelled()
            with contextlib.suppress(*AWAY):
                await self._publish_once()
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._woken.wait()
            await asyncio.sleep(BACKLOG_SECONDS)

    async def _publish_once(self) -> None:
        keys = ModelKeys(self.lease.model)
        self._around.metrics.pending.labels(self.lease.model).set(len(self.core.pending))
        self._around.metrics.running.labels(self.lease.model).set(len(self.core.flight))
        running = {
            name: f"{engine.record.state}:{engine.in_flight}" for name, engine in self.core.flight.engines.items()
        }
        async with self._around.redis.pipeline(transaction=True) as pipeline:
            pipeline.set(keys.backlog, self.backlog().SerializeToString(), px=BACKLOG_TIME_TO_LIVE_MS)
            pipeline.delete(keys.running)
            if running:
                pipeline.hset(keys.running, mapping=running)
                pipeline.pexpire(keys.running, BACKLOG_TIME_TO_LIVE_MS)
            pipeline.get(keys.policy)
            *_, chosen = await pipeline.execute()
        self._follow_policy((chosen or b"").decode())

    def _follow_policy(self, chosen: str) -> None:
        """Serve the queue by the policy that was chosen; one that this version does not know changes nothing."""
        policy = self._around.policies.get(chosen)
        if policy is not None and policy is not self.core.policy:
            log.info("another policy decides", model=self.lease.model, policy=chosen)
            self.tell(on.PolicyChanged(policy))

    def backlog(self) -> Backlog:
        """The backlog as it is now."""
        flight = self.core.flight
        takers = flight.views(accepting=True)
        now_ms = self._around.clock.now_ms()
        return backlog_of(self.core.pending, flight.views(), takers, self.core.policy.info, now_ms)


async def _patiently(action: Callable[[], Any]) -> Any:
    """Repeat a read until the store answers."""
    while True:
        raise_if_cancelled()
        try:
            return await action()
        except AWAY as error:
            log.warning("the queue can't be read; trying again", error=str(error))
            await asyncio.sleep(0.5)
