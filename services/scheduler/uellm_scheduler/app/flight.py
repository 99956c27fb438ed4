"""The part of the core that knows what is on engines: batches from their dispatch to their end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from uellm.messaging.queries import SCHEMA_VERSION, DispatchAnswer, DispatchRow, EventRow, FinishRow
from uellm.v1.query_pb2 import (
    QUERY_STATE_CANCELLED,
    QUERY_STATE_COMPLETED,
    Outcome,
    QueryState,
)
from uellm.v1.stream_pb2 import (
    ENGINE_KIND_CONTINUOUS,
    DeploymentRecord,
    QueryEvent,
    Restarted,
    StepAggregates,
)

from ..domain.failures import ENGINE_LOST, failure_of, goes_alone, no_more_attempts, retry_at_ms
from ..domain.outcomes import FINISH_REASONS, observation_of, outcome_of
from ..domain.pending import PendingTable
from ..domain.pending_query import PendingQuery
from ..domain.policy import EngineView
from ..domain.shares import RecentTokens
from . import effects as do
from . import events as on
from .batches import Batch, Engine, Row
from .costs import CostModels
from .endings import end, failed, give_up
from .limits import CoreLimits


class Flight:
    """Engines, their batches and the batches' rows. Appends what is to be done to `effects`."""

    def __init__(
        self,
        batch_prefix: str,
        pending: PendingTable,
        limits: CoreLimits,
        random: np.random.Generator,
        effects: list[do.Effect],
    ) -> None:
        self.engines: dict[str, Engine] = {}
        self.batches: dict[str, Batch] = {}
        self.costs = CostModels()
        self.served = RecentTokens()
        self.handing_over = False
        self._rows: dict[str, Batch] = {}
        self._prefix = batch_prefix
        self._batch_count = 0
        self._pending = pending
        self._limits = limits
        self._random = random
        self._effects = effects

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def deployments_changed(self, records: Iterable[DeploymentRecord]) -> None:
        """Follow the deployments; one that went away finishes what it has."""
        known = {record.name: record for record in records}
        for name, engine in list(self.engines.items()):
            if name in known:
                engine.record, engine.withdrawn = known.pop(name), False
            else:
                engine.withdrawn = True
                self._drop_if_done(engine)
        self.engines.update({name: Engine(record) for name, record in known.items()})
        self.costs.keep(self.engines)

    @property
    def has_place(self) -> bool:
        """Whether any engine takes a new batch now."""
        return any(engine.accepts and engine.free_batches for engine in self.engines.values())

    def views(self, *, accepting: bool = False) -> tuple[EngineView, ...]:
        """All engines, or those that take new batches, as a policy sees them."""
        engines = [engine for engine in self.engines.values() if engine.accepts or not accepting]
        served = self.served.of
        return tuple(engine.view(self.costs.of(engine.record), served(engine.record.name)) for engine in engines)

    def engine_ready(self, event: on.EngineReady, now_ms: int) -> None:  # noqa: ARG002
        """An engine answers again."""
        if event.deployment in self.engines:
            self.engines[event.deployment].healthy = True

    def hand_over(self, event: on.HandOver, now_ms: int) -> None:  # noqa: ARG002
        """Have engines end what runs. Rows that were not finished stay in the store as they are."""
        self.handing_over = True
        for batch in self.batches.values():
            if batch.begun:
                self._effects.append(do.CancelRows(batch.batch_id, batch.deployment, ()))

    def new_batch_ids(self, count: int) -> list[str]:
        """Ids for so many batches that are to be dispatched."""
        first = self._batch_count + 1
        self._batch_count += count
        return [f"{self._prefix}-{number}" for number in range(first, first + count)]

    def dispatch(
        self, batch_id: str, deployment: str, queries: list[PendingQuery], now_ms: int, decision_id: str = ""
    ) -> None:
        """Put queries, taken out of the pending table, on an engine."""
        engine = self.engines[deployment]
        rows = {query.name: Row.of(query) for query in queries}
        alone = any(query.alone for query in queries)
        batch = Batch(batch_id, engine.record, rows, len(rows), dispatch_ms=now_ms, heard_ms=now_ms, alone=alone)
        self._rows.update(dict.fromkeys(rows, batch))
        self.batches[batch_id] = engine.batches[batch_id] = batch
        begin = tuple(
            DispatchRow(row.pending.name, row.pending.attempts, batch.event(row.attempt, decision_id))
            for row in rows.values()
        )
        self._effects.append(do.BeginAttempts(batch_id, begin))

    def cancel(self, name: str) -> None:
        """End a row, if it is on an engine: its outcome comes when the engine has let it go."""
        batch = self._rows.get(name)
        if batch is None or batch.rows[name].cancel_wanted:
            return
        batch.rows[name].cancel_wanted = True
        if batch.begun:
            self._effects.append(do.CancelRows(batch.batch_id, batch.deployment, (name,)))

    def attempts_begun(self, event: on.AttemptsBegun, now_ms: int) -> None:
        """The store has the attempts: the batch may run."""
        batch = self.batches.get(event.batch_id)
        if batch is None:
            return
        batch.begun, batch.heard_ms = True, now_ms
        rows = [
            self._begin_row(batch, row, answer, now_ms)
            for row, answer in zip(list(batch.rows.values()), event.answers, strict=True)
        ]
        ready = tuple(row for row in rows if row is not None)
        if ready and not self.handing_over:
            self._effects.append(do.RunBatch(batch.batch_id, batch.deployment, ready))
        else:
            self._forget(batch)

    def engine_news(self, event: on.EngineNews, now_ms: int) -> None:
        """An engine produced something: deliver it, and the outcomes of the rows that ended."""
        batch = self.batches.get(event.batch_id)
        if batch is None:
            return
        batch.heard_ms = now_ms
        self._learn(batch, event.aggregates)
        # They are the whole batch's: one observation has them.
        aggregates = event.aggregates
        deltas, ends = [], []
        for news in event.rows:
            row = batch.rows.get(news.name)
            if row is None:
                continue
            delta = row.absorb(news, now_ms)
            self._pending.tenants.serve(row.pending.tenant, len(news.token_ids), now_ms)
            self.served.count(batch.deployment.name, len(news.token_ids), now_ms)
            if news.finish_reason:
                self._leave(batch, news.name)
                finish = self._row_end(batch, row, news, delta, aggregates, now_ms)
                if finish is not None:
                    ends.append(finish)
                    aggregates = None if finish.observation is not None else aggregates
            elif delta is not None:
                deltas.append(EventRow(news.name, row.attempt, delta))
        if deltas:
            self._effects.append(do.AppendEvents(tuple(deltas)))
        if ends:
            self._effects.append(do.FinishQueries(tuple(ends)))

    def batch_ended(self, event: on.BatchEnded, now_ms: int) -> None:
        """An engine has nothing more to say about a batch: what has no end yet is tried again."""
        batch = self.batches.get(event.batch_id)
        if batch is None:
            return
        engine = self.engines.get(batch.deployment.name)
        if event.error and engine is not None and engine.healthy:
            engine.healthy = False
            self._effects.append(do.AwaitEngine(batch.deployment))
        for name, row in list(batch.rows.items()):
            self._leave(batch, name)
            if row.cancel_wanted:
                outcome = self._outcome(batch, row, QUERY_STATE_CANCELLED, now_ms)
                self._effects.append(do.FinishQueries((row.finish(outcome),)))
            else:
                self._retry(batch, row, event.error or "the engine lost it", now_ms)
        self._forget(batch)

    def has_left(self, batch_id: str) -> bool:
        """Whether the end of a batch frees nothing: a continuous engine's rows have given their places back singly."""
        batch = self.batches.get(batch_id)
        return batch is None or (not batch.rows and batch.deployment.engine_kind == ENGINE_KIND_CONTINUOUS)

    def tick(self, now_ms: int) -> None:
        """End rows past a deadline that says so, and give up engines that do not answer."""
        for name, batch in list(self._rows.items()):
            needs = batch.rows[name].pending.needs
            if needs.cancel_on_miss and now_ms > needs.deadline_ms:
                self.cancel(name)
        for batch in list(self.batches.values()):
            if batch.begun and now_ms - batch.heard_ms > self._limits.engine_stall_ms:
                self._effects.append(do.AbandonBatch(batch.batch_id))
                self.batch_ended(on.BatchEnded(batch.batch_id, "the engine did not answer any more"), now_ms)

    def _learn(self, batch: Batch, aggregates: StepAggregates | None) -> None:
        """Learn what the batch cost, unless its deployment has another plan by now."""
        engine = self.engines.get(batch.deployment.name)
        if aggregates is not None and engine is not None and engine.record.plan_hash == batch.deployment.plan_hash:
            self.costs.learn(engine.record, batch.batch_id, aggregates)

    def _begin_row(self, batch: Batch, row: Row, answer: DispatchAnswer, now_ms: int) -> do.EngineRow | None:
        pending = row.pending
        if answer.status == "ok" and answer.record is not None and not row.cancel_wanted:
            row.temperature = answer.record.query.generation.temperature
            if row.token_ids and not batch.deployment.limits.resumable:
                row.restart()
                restarted = Restarted(attempt=row.attempt, resume_index=0)
                event = QueryEvent(schema_version=SCHEMA_VERSION, restarted=restarted)
                self._effects.append(do.AppendEvents((EventRow(pending.name, row.attempt, event),)))
            return do.EngineRow(pending.name, answer.record, tuple(row.token_ids))
        self._leave(batch, pending.name)
        match answer.status:
            case "ok":
                outcome = self._outcome(batch, row, QUERY_STATE_CANCELLED, now_ms)
                self._effects.append(do.FinishQueries((row.finish(outcome),)))
            case "cancelled":
                self._effects.append(end(pending, QUERY_STATE_CANCELLED, now_ms))
            case "stale":
                # The answer to an earlier dispatch was lost: the store has counted it.
                lost = failure_of("DISPATCH_LOST", "the store's answer to the dispatch was lost")
                counted = replace(batch.query_after(row, lost, now_ms), attempts=answer.attempts)
                if why := no_more_attempts(counted, 0, self._limits.max_attempts):
                    self._effects.append(give_up(counted, batch.service, why, now_ms))
                else:
                    self._pending.add(counted)
            case _:
                self._effects.append(do.AcknowledgeEntry(pending.entry_id))
        return None

    def _row_end(
        self,
        batch: Batch,
        row: Row,
        news: on.RowNews,
        delta: QueryEvent | None,
        aggregates: StepAggregates | None,
        now_ms: int,
    ) -> FinishRow | None:
        if news.finish_reason in FINISH_REASONS:
            outcome = self._outcome(batch, row, QUERY_STATE_COMPLETED, now_ms)
            outcome.finish_reason = FINISH_REASONS[news.finish_reason]
            observation = observation_of(row.pending, outcome, row.temperature, aggregates)
            return FinishRow(row.pending.name, row.pending.entry_id, row.attempt, outcome, delta, observation)
        if news.finish_reason == "cancelled" and not row.cancel_wanted:
            if delta is not None:
                self._effects.append(do.AppendEvents((EventRow(news.name, row.attempt, delta),)))
            self._retry(batch, row, "the engine ended it", now_ms)
            return None
        if news.finish_reason == "cancelled":
            return row.finish(self._outcome(batch, row, QUERY_STATE_CANCELLED, now_ms), delta)
        failure = failure_of("ENGINE_ERROR", news.error)
        return failed(batch.query_after(row, failure, now_ms), batch.service, failure, now_ms, delta)

    def _retry(self, batch: Batch, row: Row, error: str, now_ms: int) -> None:
        if self.handing_over:
            return
        pending = batch.query_after(row, failure_of(ENGINE_LOST, error), now_ms)
        longest = min(self._limits.retry_backoff_ms * 2 ** (row.attempt - 1), self._limits.longest_backoff_ms)
        backoff = longest * self._random.uniform(0.5, 1.0)
        why = no_more_attempts(pending, batch.dispatch_ms, self._limits.max_attempts)
        if why:
            self._effects.append(give_up(pending, batch.service, why, now_ms))
        else:
            alone = goes_alone(pending, self._limits.max_attempts)
            self._pending.add(replace(pending, not_before_ms=retry_at_ms(pending, backoff, now_ms), alone=alone))

    def _outcome(self, batch: Batch, row: Row, state: QueryState, now_ms: int) -> Outcome:
        return outcome_of(row.pending, state, row.progress, batch.service, row.attempt, now_ms)

    def _leave(self, batch: Batch, name: str) -> None:
        batch.rows.pop(name, None)
        self._rows.pop(name, None)

    def _forget(self, batch: Batch) -> None:
        self.batches.pop(batch.batch_id, None)
        engine = self.engines.get(batch.deployment.name)
        if engine is not None:
            engine.batches.pop(batch.batch_id, None)
            self._drop_if_done(engine)

    def _drop_if_done(self, engine: Engine) -> None:
        if engine.withdrawn and not engine.batches:
            self.engines.pop(engine.record.name, None)
