"""Carries out the core's effects on the store: one after the other, each until it is done or fenced."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from uellm.messaging.connection import raise_if_cancelled
from uellm.messaging.costs import CostStore
from uellm.messaging.decisions import DecisionStore
from uellm.messaging.inbox import Inbox
from uellm.messaging.queries import EventRow, FinishRow, QueryStore

from . import effects as do
from .events import AttemptsBegun, Event

log = structlog.get_logger(__name__)

T = TypeVar("T")
AWAY = (RedisConnectionError, RedisTimeoutError, OSError)
TRANSIENT = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "MISCONF", "NOREPLICAS")
"""Error codes of a server that can't write now."""
LONGEST_PAUSE_SECONDS = 2.0
MERGED_ROWS = 512


class Writer:
    """Writes for one queue under one lease. A store that is away is waited for: nothing is dropped or reordered."""

    def __init__(
        self,
        queue: str,
        epoch: int,
        store: QueryStore,
        costs: CostStore,
        decisions: DecisionStore,
        inbox: Inbox,
        tell: Callable[[Event], None],
    ) -> None:
        self._queue = queue
        self._epoch = epoch
        self._store = store
        self._costs = costs
        self._decisions = decisions
        self._inbox = inbox
        self._tell = tell
        self._waiting: list[do.StoreEffect] = []
        self._news = asyncio.Event()

    def put(self, effect: do.StoreEffect) -> None:
        """Have an effect carried out after those before it."""
        self._waiting.append(effect)
        self._news.set()

    @property
    def idle(self) -> bool:
        """Whether everything is written."""
        return not self._waiting

    async def run(self) -> None:
        """Write until cancelled.

        Raises:
            FencedError: another replica owns the queue.
        """
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                done = 0
                for kind, group in groupby(list(self._waiting[:MERGED_ROWS]), type):
                    effects = list(group)
                    await self._write(kind, effects)
                    done += len(effects)
                del self._waiting[:done]

    async def _write(self, kind: type[Any], effects: list[Any]) -> None:
        if kind is do.AppendEvents:
            await self._append([row for effect in effects for row in effect.rows])
        elif kind is do.FinishQueries:
            await self._finish([row for effect in effects for row in effect.rows])
        elif kind is do.PublishCostModels:
            await self._publish_costs(effects)
        else:
            for effect in effects:
                await self._single(effect)

    async def _single(self, effect: do.RecordDecision | do.BeginAttempts | do.AcknowledgeEntry) -> None:
        if isinstance(effect, do.RecordDecision):
            await self._until_done(
                lambda: self._decisions.write(self._queue, self._epoch, effect.decision_id, effect.record)
            )
            return
        if isinstance(effect, do.AcknowledgeEntry):
            await self._until_done(lambda: self._inbox.acknowledge(effect.entry_id))
            return
        answers = await self._until_done(lambda: self._store.dispatch(self._queue, self._epoch, effect.rows))
        self._tell(AttemptsBegun(effect.batch_id, tuple(answers)))

    async def _append(self, rows: Sequence[EventRow]) -> None:
        async def once() -> list[str]:
            return await self._store.append(self._queue, self._epoch, rows)

        async def again() -> list[str]:
            # The first try may have run, its answer lost; the script writes all rows or none.
            return [] if await self._store.is_last_event(rows[-1]) else await once()

        ids = await self._until_done(once, again)
        late = [row.name for row, event_id in zip(rows, ids, strict=False) if not event_id]
        if late:
            log.warning("events of attempts that are over", queries=late)

    async def _finish(self, rows: Sequence[FinishRow]) -> None:
        answers = await self._until_done(lambda: self._store.finish(self._queue, self._epoch, rows))
        stale = [row for row, answer in zip(rows, answers, strict=True) if answer == "stale"]
        if not stale:
            return
        # An attempt was counted whose answer was lost; the lease says that nobody else can have begun it.
        known = await self._until_done(lambda: self._store.read_many([row.name for row in stale]))
        corrected = [replace(row, attempts=q.attempts) for row, q in zip(stale, known, strict=True) if q is not None]
        await self._until_done(lambda: self._store.finish(self._queue, self._epoch, corrected))

    async def _publish_costs(self, effects: Sequence[do.PublishCostModels]) -> None:
        newest = {state.deployment: state for effect in effects for state in effect.states}
        await self._until_done(lambda: self._costs.publish(self._queue, self._epoch, list(newest.values())))

    async def _until_done(
        self, action: Callable[[], Awaitable[T]], again: Callable[[], Awaitable[T]] | None = None
    ) -> T:
        pause = 0.05
        attempt = action
        while True:
            raise_if_cancelled()
            try:
                return await attempt()
            except AWAY as error:
                log.warning("the queue's store does not answer; trying again", error=str(error), pause_seconds=pause)
            except ResponseError as error:
                if not str(error).startswith(TRANSIENT):
                    raise
                log.warning("the queue's store can't write now; trying again", error=str(error), pause_seconds=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            attempt = again or action
