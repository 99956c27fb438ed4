"""What can happen to the core."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.messaging.queries import DispatchAnswer
from uellm.v1.stream_pb2 import Attempt, CostModelState, DeploymentRecord, ProfiledQuery, StepAggregates

from ..domain.pending_query import NOTHING, Progress
from ..domain.policy import Policy


@dataclass(frozen=True, slots=True)
class TakenQuery:
    """A query that came from the queue; with its history, if an earlier owner had it."""

    name: str
    entry_id: str
    query: ProfiledQuery
    attempts: int = 0
    progress: Progress = NOTHING
    cancel_requested: bool = False
    history: tuple[Attempt, ...] = ()
    """The attempts under earlier owners."""


@dataclass(frozen=True, slots=True)
class QueriesTaken:
    """Queries came from the queue."""

    queries: tuple[TakenQuery, ...]


@dataclass(frozen=True, slots=True)
class CancelWanted:
    """A client wants a query to end. The control message's entry is to be acknowledged."""

    name: str
    entry_id: str


@dataclass(frozen=True, slots=True)
class DeploymentsChanged:
    """The deployments of the model are these now."""

    records: tuple[DeploymentRecord, ...]


@dataclass(frozen=True, slots=True)
class CostModelsFound:
    """What an earlier owner knew of the cost of deployments."""

    states: tuple[CostModelState, ...]


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Another policy decides from now on."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class AttemptsBegun:
    """The store answered a `BeginAttempts`; one answer a row."""

    batch_id: str
    answers: tuple[DispatchAnswer, ...]


@dataclass(frozen=True, slots=True)
class RowNews:
    """What an engine produced for one row."""

    name: str
    first_token_index: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str = ""
    """Empty while the row runs; `stop`, `length`, `cancelled` or `error`."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class EngineNews:
    """An engine produced something."""

    batch_id: str
    rows: tuple[RowNews, ...]
    aggregates: StepAggregates | None = None


@dataclass(frozen=True, slots=True)
class BatchEnded:
    """An engine has nothing more to say about a batch. Rows without a finish reason did not end well."""

    batch_id: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class EngineReady:
    """An engine that failed answers again."""

    deployment: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """This owner stops: engines end its batches, and the next owner goes on with their rows."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    QueriesTaken
    | CancelWanted
    | DeploymentsChanged
    | CostModelsFound
    | PolicyChanged
    | AttemptsBegun
    | EngineNews
    | BatchEnded
    | EngineReady
    | HandOver
    | Tick
)
