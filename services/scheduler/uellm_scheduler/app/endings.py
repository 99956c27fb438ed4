"""The effects that end a query."""

from __future__ import annotations

from uellm.messaging.queries import FinishRow
from uellm.v1.query_pb2 import QUERY_STATE_FAILED, Failure, Outcome, QueryState
from uellm.v1.stream_pb2 import QueryEvent

from ..domain.failures import dead_letter_of, failure_of
from ..domain.outcomes import NOT_SERVED, Service, outcome_of
from ..domain.pending_query import PendingQuery
from . import effects as do


def end(pending: PendingQuery, state: QueryState, now_ms: int, outcome: Outcome | None = None) -> do.FinishQueries:
    """End a query that is not on an engine."""
    if outcome is None:
        outcome = outcome_of(pending, state, pending.progress, NOT_SERVED, pending.attempts, now_ms)
    return do.FinishQueries((FinishRow(pending.name, pending.entry_id, pending.attempts, outcome),))


def failed(
    pending: PendingQuery, service: Service, failure: Failure, now_ms: int, last_event: QueryEvent | None = None
) -> FinishRow:
    """The end of a query that failed for good, with its dead letter; the history holds the last attempt, too."""
    outcome = outcome_of(pending, QUERY_STATE_FAILED, pending.progress, service, pending.attempts, now_ms)
    outcome.failure.CopyFrom(failure)
    letter = dead_letter_of(pending, failure, now_ms)
    return FinishRow(pending.name, pending.entry_id, pending.attempts, outcome, last_event, dead_letter=letter)


def give_up(pending: PendingQuery, service: Service, why: str, now_ms: int) -> do.FinishQueries:
    """End a query that is not tried again; its history says what went wrong."""
    last = pending.history[-1].failure.message if pending.history else ""
    failure = failure_of("RETRIES_EXHAUSTED", f"{why}; the last one ended with: {last}")
    return do.FinishQueries((failed(pending, service, failure, now_ms),))
