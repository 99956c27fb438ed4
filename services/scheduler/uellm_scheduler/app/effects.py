"""What the core wants done. Effects on the store are carried out one after the other, in order; the others at once."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.messaging.queries import DispatchRow, EventRow, FinishRow
from uellm.v1.stream_pb2 import CostModelState, DecisionRecord, DeploymentRecord, QueryRecord


@dataclass(frozen=True, slots=True)
class BeginAttempts:
    """Begin an attempt for each row, then answer with `AttemptsBegun`."""

    batch_id: str
    rows: tuple[DispatchRow, ...]


@dataclass(frozen=True, slots=True)
class RecordDecision:
    """Write an entry of the flight recorder."""

    decision_id: str
    record: DecisionRecord


@dataclass(frozen=True, slots=True)
class AppendEvents:
    """Append an event to each query."""

    rows: tuple[EventRow, ...]


@dataclass(frozen=True, slots=True)
class FinishQueries:
    """Write outcomes."""

    rows: tuple[FinishRow, ...]


@dataclass(frozen=True, slots=True)
class AcknowledgeEntry:
    """Take an entry that is not a query, or not any more, off the queue."""

    entry_id: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One row as an engine gets it."""

    name: str
    record: QueryRecord
    resume_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Run a batch on an engine; answer with `EngineNews`, then `BatchEnded`."""

    batch_id: str
    deployment: DeploymentRecord
    rows: tuple[EngineRow, ...]


@dataclass(frozen=True, slots=True)
class CancelRows:
    """Ask the engine to end some rows of a batch; without names, all of them."""

    batch_id: str
    deployment: DeploymentRecord
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AbandonBatch:
    """Give a batch up that the engine does not answer for any more."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class AwaitEngine:
    """Wait until a failed engine answers again, then say `EngineReady`."""

    deployment: DeploymentRecord


@dataclass(frozen=True, slots=True)
class PublishCostModels:
    """Write what is known of the cost of some deployments, for the profiler and for the next owner."""

    states: tuple[CostModelState, ...]


StoreEffect = RecordDecision | BeginAttempts | AppendEvents | FinishQueries | AcknowledgeEntry | PublishCostModels
EngineEffect = RunBatch | CancelRows | AbandonBatch | AwaitEngine
Effect = StoreEffect | EngineEffect
