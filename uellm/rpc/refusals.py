"""Refusals that more than one service utters, each with its numbers and what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from uellm.rpc.errors import RefusedError
from uellm.v1.query_pb2 import (
    REFUSAL_REASON_MODEL_NOT_DEPLOYED,
    REFUSAL_REASON_QUEUE_FULL,
    QueueFull,
    Refusal,
)
from uellm.v1.stream_pb2 import Backlog, DeploymentRecord, DeploymentState

BACKLOG_STALE_AFTER_MS = 10_000
"""A backlog that was published longer ago says nothing about now."""
DEFAULT_RETRY_SECONDS = 1.0
_MIN_RETRY_SECONDS = 0.1
_MAX_RETRY_SECONDS = 60.0


def model_not_deployed(model: str, known: Sequence[DeploymentRecord]) -> RefusedError:
    """No deployment takes queries for the model; `known` are its deployments in other states."""
    states = ", ".join(f"{record.name} is {_state(record)}" for record in known) or "it has no deployment"
    message = f"model {model!r} is not served: {states}. Deploy it, or wait until its deployment is ready"
    return RefusedError(Refusal(reason=REFUSAL_REASON_MODEL_NOT_DEPLOYED, message=message))


def queue_full(model: str, depth: int, limit: int, retry_seconds: float) -> RefusedError:
    """The model's queue holds as many queries as it may."""
    message = f"the queue of model {model!r} is full: {depth:,} of {limit:,}. Try again in {retry_seconds:.1f} s"
    detail = QueueFull(depth=depth, limit=limit, retry_after=duration(retry_seconds))
    return RefusedError(Refusal(reason=REFUSAL_REASON_QUEUE_FULL, message=message, queue_full=detail))


def retry_seconds(backlog: Backlog | None, depth: int, limit: int, now_ms: int) -> float:
    """When a place in a full queue is expected to be free: the mean time in which as many queries end as must.

    Between 0.1 s and a minute; 1 s if no fresh backlog is known.
    """
    if backlog is None or now_ms - backlog.publish_time.ToMilliseconds() > BACKLOG_STALE_AFTER_MS:
        return DEFAULT_RETRY_SECONDS
    work_seconds = backlog.work_p50.ToNanoseconds() / 1e9
    seconds = work_seconds * (depth - limit + 1) / max(backlog.queued + backlog.running, 1)
    return clamped(seconds)


def clamped(seconds: float) -> float:
    """A retry delay within its bounds."""
    return min(max(seconds, _MIN_RETRY_SECONDS), _MAX_RETRY_SECONDS)


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def _state(record: DeploymentRecord) -> str:
    if record.state not in DeploymentState.values():
        return f"in state {record.state:d}"
    name: str = DeploymentState.Name(record.state)
    return name.removeprefix("DEPLOYMENT_STATE_")
