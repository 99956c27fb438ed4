"""What an earlier owner did for a query, read back from its event stream."""

from __future__ import annotations

from collections.abc import Iterable

from uellm.v1.query_pb2 import Failure
from uellm.v1.stream_pb2 import Attempt, QueryEvent

from ..domain.pending_query import Progress


def progress_of(events: Iterable[tuple[int, QueryEvent]]) -> Progress:
    """Fold a query's events (time in ms, event; oldest first) into what was delivered."""
    token_ids: list[int] = []
    text: list[str] = []
    first_token_ms = 0
    for time_ms, event in events:
        kind = event.WhichOneof("event")
        if kind == "restarted":
            token_ids, text = [], []
        elif kind == "token_delta":
            first_token_ms = first_token_ms or time_ms
            token_ids += event.token_delta.token_ids
            text.append(event.token_delta.text)
    return Progress(tuple(token_ids), "".join(text), first_token_ms)


def attempts_of(events: Iterable[tuple[int, QueryEvent]]) -> tuple[Attempt, ...]:
    """The attempts in a query's events; `end_time` is when each was last heard of.

    How they ended was known to owners that are gone.
    """
    attempts: list[Attempt] = []
    lost = Failure(
        reason="SCHEDULER_LOST", message="the scheduler that dispatched it was lost, and with it how it ended"
    )
    for time_ms, event in events:
        if event.HasField("batched"):
            batched = event.batched
            attempts.append(
                Attempt(attempt=batched.attempt, batch_id=batched.batch_id, deployment=batched.deployment, failure=lost)
            )
        if attempts:
            attempts[-1].end_time.FromMilliseconds(time_ms)
    return tuple(attempts)
