"""What becomes of an attempt that failed: another one, or a dead letter."""

from __future__ import annotations

from uellm.messaging.clock import timestamp
from uellm.v1.query_pb2 import Failure
from uellm.v1.stream_pb2 import Attempt, DeadLetter

from .pending_query import PendingQuery

MIN_WAIT_MS = 5
"""An engine that fails at once is not asked again at once."""
MESSAGE_CHARACTERS = 2_000
ENGINE_LOST = "ENGINE_LOST"
"""Reason of an attempt whose engine did not say how it ended."""


def failure_of(reason: str, message: str) -> Failure:
    """A failure; engines may say a lot, of which the beginning is kept."""
    return Failure(reason=reason, message=message[:MESSAGE_CHARACTERS])


def attempt_of(number: int, batch_id: str, deployment: str, failure: Failure, end_ms: int) -> Attempt:
    """An attempt that ended without an answer."""
    return Attempt(
        attempt=number, batch_id=batch_id, deployment=deployment, failure=failure, end_time=timestamp(end_ms)
    )


def no_more_attempts(pending: PendingQuery, began_ms: int, max_attempts: int) -> str:
    """Why a query whose last attempt began then is not tried again; empty if it is.

    One that began in time is followed by another, even if that one will be late; one that began late by none.
    """
    if pending.attempts >= max_attempts:
        return f"given up after {pending.attempts} attempts"
    if began_ms >= pending.needs.deadline_ms:
        return f"given up after {pending.attempts} attempts, since the last one began after the deadline"
    return ""


def goes_alone(pending: PendingQuery, max_attempts: int) -> bool:
    """Whether the attempt before the last one was lost with its engine.

    A query that ends its engine would take its batch mates along until they, too, have no attempt left.
    """
    last = pending.history[-1].failure.reason if pending.history else ""
    return pending.attempts == max_attempts - 1 and last == ENGINE_LOST


def retry_at_ms(pending: PendingQuery, backoff_ms: float, now_ms: int) -> int:
    """When the next attempt may begin: after the backoff, but while a deadline that is ahead can still be kept."""
    wait_ms = backoff_ms
    if now_ms < pending.needs.deadline_ms:
        wait_ms = min(wait_ms, pending.needs.deadline_ms - pending.needs.alone_ms - now_ms)
    return now_ms + max(MIN_WAIT_MS, round(wait_ms))


def dead_letter_of(pending: PendingQuery, failure: Failure, now_ms: int) -> DeadLetter:
    """The letter of a query that failed for good; its history holds every attempt.

    The finish script adds payload and queue entry.
    """
    return DeadLetter(
        schema_version=1,
        name=pending.name,
        failure=failure,
        attempts=pending.history,
        fail_time=timestamp(now_ms),
    )
