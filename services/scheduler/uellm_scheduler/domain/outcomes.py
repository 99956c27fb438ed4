"""How a query's end is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uellm.messaging.clock import timestamp
from uellm.v1.query_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    QUERY_STATE_COMPLETED,
    FinishReason,
    Outcome,
    QueryState,
    Timing,
)
from uellm.v1.stream_pb2 import Observation, StepAggregates

from .pending_query import PendingQuery, Progress

FINISH_REASONS: Mapping[str, FinishReason] = {"stop": FINISH_REASON_STOP, "length": FINISH_REASON_LENGTH}


@dataclass(frozen=True, slots=True)
class Service:
    """How a query was last served."""

    deployment: str = ""
    batch_id: str = ""
    batch_rows: int = 0
    dispatch_ms: int = 0
    """0: never."""


NOT_SERVED = Service()


def outcome_of(
    pending: PendingQuery, state: QueryState, progress: Progress, service: Service, attempts: int, now_ms: int
) -> Outcome:
    """The outcome of a query that ends now, without reason, refusal or failure.

    The finish script adds the profile, which stays in Redis.
    """
    timing = Timing(accept_time=timestamp(pending.arrival_ms), finish_time=timestamp(now_ms))
    if service.dispatch_ms:
        timing.dispatch_time.CopyFrom(timestamp(service.dispatch_ms))
    if progress.first_token_ms:
        timing.first_token_time.CopyFrom(timestamp(progress.first_token_ms))
    return Outcome(
        state=state,
        text=progress.text,
        prompt_tokens=pending.needs.prompt_tokens,
        output_tokens=len(progress.token_ids),
        timing=timing,
        slo_met=state == QUERY_STATE_COMPLETED and slo_met(pending, progress.first_token_ms, now_ms),
        dispatch_count=attempts,
        deployment=service.deployment,
        batch_id=service.batch_id,
        batch_rows=service.batch_rows,
    )


def slo_met(pending: PendingQuery, first_token_ms: int, finish_ms: int) -> bool:
    """Whether a completed answer kept each objective that it had."""
    return finish_ms <= pending.needs.deadline_ms and first_token_ms <= pending.needs.first_token_deadline_ms


def observation_of(
    pending: PendingQuery, outcome: Outcome, temperature: float, aggregates: StepAggregates | None
) -> Observation:
    """What a completed query taught; the finish script adds the profile."""
    dispatch_ms = outcome.timing.dispatch_time.ToMilliseconds()
    observation = Observation(
        schema_version=1,
        name=pending.name,
        deployment=outcome.deployment,
        temperature=temperature,
        output_tokens=outcome.output_tokens,
        censored=outcome.finish_reason == FINISH_REASON_LENGTH,
        step_aggregates=aggregates,
    )
    observation.queue_time.FromMilliseconds(dispatch_ms - pending.arrival_ms)
    observation.service_time.FromMilliseconds(outcome.timing.finish_time.ToMilliseconds() - dispatch_ms)
    return observation
