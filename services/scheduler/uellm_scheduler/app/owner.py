"""The shell around the core: one queue, owned for as long as the lease holds."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from uellm.messaging.clock import Clock, timestamp
from uellm.messaging.connection import RedisClient, raise_if_cancelled
from uellm.messaging.costs import CostStore
from uellm.messaging.decisions import DecisionStore
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.inbox import Entry, Inbox
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import Lease
from uellm.messaging.queries import FinishRow, QueryStore
from uellm.v1.query_pb2 import QUERY_STATE_FAILED, Failure, Outcome
from uellm.v1.stream_pb2 import Backlog, DeadLetter, DeploymentRecord

from ..domain.backlog import backlog_of
from ..domain.entries import is_name_of, problem_of
from ..domain.policy import Policy
from . import effects as do
from . import events as on
from .core import SchedulerCore
from .limits import CoreLimits
from .metrics import Metrics
from .ports import EngineError, Engines
from .recovery import recover
from .writer import AWAY, Writer

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.25
BACKLOG_SECONDS = 0.1
BACKLOG_TIME_TO_LIVE_MS = 5_000
PROBE_SECONDS = 0.25
HAND_OVER_SECONDS = 2.0
STRAYS_MS = 1_000
RECOVERED_AT_ONCE = 250
"""Queries; between them others get their turn on the event loop, and the first are decided on."""


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
        self.model = ModelKeys.of(lease.queue).model
        self._around = around
        self._inbox = Inbox(around.redis, lease.queue, around.replica)
        self.core = SchedulerCore(self.model, lease.epoch, around.policy, around.limits, seed=lease.epoch)
        self._costs = CostStore(around.redis)
        decisions = DecisionStore(around.redis, around.limits.decisions_bytes, around.limits.decisions_kept)
        self._writer = Writer(lease.queue, lease.epoch, around.store, self._costs, decisions, self._inbox, self.tell)
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
                    self._around.metrics.count(self.model, effect)
                    self._writer.put(effect)
        self._woken.set()

    # --- the queue ---

    async def _read(self) -> None:
        entries = await _patiently(self._inbox.take_over)
        log.info("took the queue over", queue=self.lease.queue, epoch=self.lease.epoch, entries=len(entries))
        self.tell(on.CostModelsFound(tuple(await _patiently(lambda: self._costs.read(self.model)))))
        await self._recall(entries)
        look = 0
        while True:
            self._hear(await _patiently(self._inbox.read), {})
            if self._around.clock.now_ms() >= look:
                await self._recall(await _patiently(self._inbox.strays))
                look = self._around.clock.now_ms() + STRAYS_MS

    async def _recall(self, entries: list[Entry]) -> None:
        """Hear entries that former owners had, with what became of them."""
        for at in range(0, len(entries), RECOVERED_AT_ONCE):
            page = entries[at : at + RECOVERED_AT_ONCE]
            queries = {
                entry.query.name: (entry.entry_id, entry.query)
                for entry in page
                if entry.query is not None and self._makes_sense(entry)
            }
            self._hear(page, await _patiently(functools.partial(recover, self._around.store, queries)))

    def _hear(self, entries: list[Entry], history: dict[str, on.TakenQuery]) -> None:
        taken = []
        for entry in entries:
            if self._makes_sense(entry):
                assert entry.query is not None
                fresh = on.TakenQuery(entry.query.name, entry.entry_id, entry.query)
                taken.append(history.get(entry.query.name, fresh))
            elif entry.control is not None and entry.control.cancel_query:
                # In order: the query that it names may stand before it.
                self.tell(on.QueriesTaken(tuple(taken)))
                taken = []
                self.tell(on.CancelWanted(entry.control.cancel_query, entry.entry_id))
            else:
                self._put_aside(entry)
        if taken:
            self.tell(on.QueriesTaken(tuple(taken)))

    def _makes_sense(self, entry: Entry) -> bool:
        query = entry.query
        return query is not None and is_name_of(query.name, self.model) and not problem_of(entry.entry_id, query)

    def _put_aside(self, entry: Entry) -> None:
        """Take an entry off that can't be decided on; a query that can be told from it ends with the reason."""
        query = entry.query
        if query is None or not is_name_of(query.name, self.model):
            log.error("an entry of the queue can't be read; dropped", queue=self.lease.queue, entry=entry.entry_id)
            self._writer.put(do.AcknowledgeEntry(entry.entry_id))
            return
        problem = problem_of(entry.entry_id, query)
        log.error("an entry of the queue makes no sense", query=query.name, entry=entry.entry_id, problem=problem)
        failure = Failure(reason="ENTRY_INVALID", message=f"its entry in the queue makes no sense: {problem}")
        outcome = Outcome(state=QUERY_STATE_FAILED, failure=failure)
        letter = DeadLetter(
            schema_version=1,
            name=query.name,
            failure=failure,
            fail_time=timestamp(self._around.clock.now_ms()),
        )
        self._writer.put(do.FinishQueries((FinishRow(query.name, entry.entry_id, 0, outcome, dead_letter=letter),)))

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
        engines = self.core.flight.engines
        # It may be deployed anew meanwhile, elsewhere, or not at all.
        while (engine := engines.get(deployment.name)) and not await self._around.engines.ready(  # noqa: ASYNC110
            engine.record
        ):
            await asyncio.sleep(PROBE_SECONDS)
        self.tell(on.EngineReady(deployment.name))

    def _follow_deployments(self) -> None:
        self.tell(on.DeploymentsChanged(tuple(self._around.directory.of_queue(self.lease.queue))))

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
        keys = ModelKeys.of(self.lease.queue)
        self._around.metrics.pending.labels(self.lease.queue).set(len(self.core.pending))
        self._around.metrics.running.labels(self.lease.queue).set(len(self.core.flight))
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
            log.info("another policy decides", queue=self.lease.queue, policy=chosen)
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
