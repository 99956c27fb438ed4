"""The batches that are on engines, and the engines, as the core knows them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.model import CostModel
from uellm.messaging.queries import SCHEMA_VERSION, FinishRow
from uellm.v1.query_pb2 import Failure, Outcome
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_CONTINUOUS,
    Batched,
    DeploymentRecord,
    QueryEvent,
    TokenDelta,
)

from ..domain.failures import attempt_of
from ..domain.outcomes import Service
from ..domain.pending_query import PendingQuery, Progress
from ..domain.policy import EngineView, RunningRow
from .events import RowNews


@dataclass(slots=True)
class Row:
    """A query that is on an engine, or about to be."""

    pending: PendingQuery
    attempt: int
    token_ids: list[int]
    text: list[str]
    first_token_ms: int
    temperature: float = 0.0
    cancel_wanted: bool = False

    @classmethod
    def of(cls, pending: PendingQuery) -> Row:
        """The row of a query that is dispatched."""
        progress = pending.progress
        return cls(pending, pending.attempts + 1, list(progress.token_ids), [progress.text], progress.first_token_ms)

    @property
    def progress(self) -> Progress:
        """What has been delivered so far."""
        return Progress(tuple(self.token_ids), "".join(self.text), self.first_token_ms)

    def restart(self) -> None:
        """Forget what was delivered."""
        self.token_ids, self.text = [], []

    def absorb(self, news: RowNews, now_ms: int) -> QueryEvent | None:
        """Add what came; returns the delta to deliver, None if there is nothing to say."""
        if not news.token_ids and not news.text:
            return None
        if news.token_ids and not self.first_token_ms:
            self.first_token_ms = now_ms
        first_index = len(self.token_ids)
        self.token_ids += news.token_ids
        self.text.append(news.text)
        delta = TokenDelta(
            attempt=self.attempt, first_token_index=first_index, token_ids=news.token_ids, text=news.text
        )
        return QueryEvent(schema_version=SCHEMA_VERSION, token_delta=delta)

    def finish(self, outcome: Outcome, last_event: QueryEvent | None = None) -> FinishRow:
        """Its end."""
        return FinishRow(self.pending.name, self.pending.entry_id, self.attempt, outcome, last_event)


@dataclass(slots=True)
class Batch:
    """A batch from its decision to its end."""

    batch_id: str
    deployment: DeploymentRecord
    rows: dict[str, Row]
    rows_at_start: int
    dispatch_ms: int
    heard_ms: int
    """When the engine was last heard of."""
    alone: bool = False
    """Whether nothing else may run beside its rows."""
    begun: bool = False
    """Whether its attempts are in the store."""

    @property
    def service(self) -> Service:
        """How its rows are served."""
        return Service(self.deployment.name, self.batch_id, self.rows_at_start, self.dispatch_ms)

    def event(self, attempt: int, decision_id: str) -> QueryEvent:
        """What a row's stream is told of its dispatch."""
        batched = Batched(
            batch_id=self.batch_id,
            batch_rows=self.rows_at_start,
            deployment=self.deployment.name,
            attempt=attempt,
            decision_id=decision_id,
        )
        return QueryEvent(schema_version=SCHEMA_VERSION, batched=batched)

    def query_after(self, row: Row, failure: Failure, now_ms: int) -> PendingQuery:
        """The query of a row whose attempt failed."""
        attempt = attempt_of(row.attempt, self.batch_id, self.deployment.name, failure, now_ms)
        return replace(
            row.pending,
            attempts=row.attempt,
            progress=row.progress,
            not_before_ms=0,
            history=(*row.pending.history, attempt),
        )


@dataclass(slots=True)
class Engine:
    """A deployment and what runs on it."""

    record: DeploymentRecord
    healthy: bool = True
    withdrawn: bool = False
    """Not deployed any more: it finishes what it has."""
    batches: dict[str, Batch] = field(default_factory=dict)

    @property
    def accepts(self) -> bool:
        """Whether it takes new batches."""
        return self.healthy and not self.withdrawn and self.record.state == DEPLOYMENT_STATE_READY

    @property
    def in_flight(self) -> int:
        """Queries on it."""
        return sum(len(batch.rows) for batch in self.batches.values())

    @property
    def free_batches(self) -> int:
        """How many batches it takes now. A continuous engine takes one more wherever a row is free."""
        limits = self.record.limits
        if self.record.engine_kind == ENGINE_KIND_CONTINUOUS:
            free = int(self.in_flight < limits.max_batch_rows)
        else:
            free = max(0, limits.max_concurrent_batches - len(self.batches))
        return 0 if free and any(batch.alone and batch.rows for batch in self.batches.values()) else free

    def view(self, cost: CostModel | None = None, served_tokens: float = 0.0) -> EngineView:
        """As a policy sees it; without a cost model it has the deployment's prior."""
        cost = cost or CostModel.from_prior(self.record.step_time_prior)
        running = tuple(tuple(_running(row) for row in batch.rows.values()) for batch in self.batches.values())
        return engine_view(self.record, cost, self.free_batches, running, served_tokens)


def engine_view(
    record: DeploymentRecord,
    cost: CostModel,
    free_batches: int,
    running: tuple[tuple[RunningRow, ...], ...],
    served_tokens: float = 0.0,
) -> EngineView:
    """A deployment with what runs on it, as a policy sees it; live and in replay."""
    limits = record.limits
    return EngineView(
        deployment=record.name,
        kind=record.engine_kind,
        free_batches=free_batches,
        max_batch_rows=limits.max_batch_rows,
        context_tokens=limits.context_tokens,
        kv_budget_bytes=limits.kv_budget_bytes,
        kv_cache=KvCacheLayout.from_facts(record.facts),
        cost=cost,
        traffic_share=record.traffic_share,
        running=running,
        page_tokens=limits.kv_page_tokens,
        served_tokens=served_tokens,
    )


def _running(row: Row) -> RunningRow:
    needs = row.pending.needs
    return RunningRow(
        needs.prompt_tokens,
        len(row.token_ids),
        needs.length_points,
        needs.limit_tokens,
        needs.length_tail,
        needs.deadline_ms,
    )
