"""What the deployer is asked, and its operations from begin to end. No I/O: both clients share it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from google.longrunning.operations_pb2 import Operation as OperationMessage

from uellm.client.following import Patience
from uellm.rpc.errors import DeadlineExceededError, FieldViolation, InvalidArgumentError, NotFoundError, UellmError
from uellm.rpc.status import from_status
from uellm.v1.deployer_pb2 import (
    CreateDeploymentRequest,
    DeleteDeploymentRequest,
    Deployment,
    DeploymentProgress,
    DeploymentSpec,
    RollbackDeploymentRequest,
)

PLAN_SECONDS = 120.0
"""How long the deployer may plan before it begins an operation."""
CHANGE_SECONDS = 900.0
"""How long what changes something at once may wait for the operations that run, and then repair: loads take minutes."""
FIRST_LOOK_SECONDS = 0.1
LONGEST_LOOK_SECONDS = 1.0
SERVED_SECONDS = 30.0
"""How long the other services may take to learn of a deployment; usually it is one or two."""
SHORTEST_CALL_SECONDS = 0.05

Strategy = Literal["blue_green", "recreate", "beside"]
"""How a new deployment takes over: the old ones go once it is verified; they go first; they stay (`set_traffic`)."""

OnProgress = Callable[[DeploymentProgress], object]
"""Gets where an operation stands, at every look until it has ended; what it raises ends the waiting only."""

R = TypeVar("R")


def create_request(
    spec: DeploymentSpec, deployment_id: str, strategy: Strategy, request_id: str, *, validate_only: bool
) -> CreateDeploymentRequest:
    """A creation that can be repeated. Raises InvalidArgumentError for a strategy that there is not."""
    if strategy not in get_args(Strategy):
        raise InvalidArgumentError(
            [FieldViolation("strategy", f"must be one of {', '.join(get_args(Strategy))}; got {strategy!r}")]
        )
    return CreateDeploymentRequest(
        deployment_id=deployment_id,
        spec=spec,
        strategy=f"DEPLOYMENT_STRATEGY_{strategy.upper()}",
        validate_only=validate_only,
        request_id=request_id or _new_id(),
    )


def delete_request(
    name: str, etag: str, drain_timeout_seconds: float | None, request_id: str
) -> DeleteDeploymentRequest:
    """A removal that can be repeated."""
    request = DeleteDeploymentRequest(name=name, etag=etag, request_id=request_id or _new_id())
    if drain_timeout_seconds is not None:
        request.drain_timeout.FromNanoseconds(round(1e9 * drain_timeout_seconds))
    return request


def rollback_request(model: str, request_id: str) -> RollbackDeploymentRequest:
    """A way back that can be repeated."""
    return RollbackDeploymentRequest(model=model, request_id=request_id or _new_id())


def is_unheard_of(error: UellmError) -> bool:
    """Whether a service does not know of a model's deployment, yet."""
    return error.code == "NOT_FOUND"


def _new_id() -> str:
    return str(uuid.uuid4())


def a_deployment(message: OperationMessage) -> Deployment:
    """What an operation created; NotFoundError if that is gone since."""
    deployment = whichever(message)
    if deployment is None:
        name = _progress(message).deployment
        raise NotFoundError("deployment", name, f"{name} was created, and is gone since")
    return deployment


def nothing(_message: OperationMessage) -> None:
    """What is left after a removal."""


def whichever(message: OperationMessage) -> Deployment | None:
    """What an operation created; None if it removed, or if that is gone since."""
    deployment = Deployment()
    return deployment if message.response.Unpack(deployment) else None


def _progress(message: OperationMessage) -> DeploymentProgress:
    progress = DeploymentProgress()
    message.metadata.Unpack(progress)
    return progress


class OperationState(Generic[R]):
    """An operation of the deployer as it was seen last. It goes on whether anybody waits for it or not."""

    def __init__(self, message: OperationMessage, read: Callable[[OperationMessage], R]) -> None:
        self._message = message
        self._read = read

    @property
    def name(self) -> str:
        """`operations/{operation}`; empty where a request was only checked."""
        name: str = self._message.name
        return name

    @property
    def done(self) -> bool:
        """Whether it had ended."""
        done: bool = self._message.done
        return done

    @property
    def progress(self) -> DeploymentProgress:
        """Its step, how far it was, and on which deployment."""
        return _progress(self._message)

    def _outcome(self) -> R:
        if self._message.HasField("error"):
            raise from_status(self._message.error)
        return self._read(self._message)


@dataclass(frozen=True, slots=True)
class Limits:
    """A client's, in seconds."""

    call_seconds: float
    """Of one look."""
    reconnect_seconds: float
    """How long the deployer may be out of reach."""


@dataclass(frozen=True, slots=True)
class Awaited:
    """What is waited for, as it is said when the time is up."""

    not_yet: str
    but: str
    reason: str

    @classmethod
    def end_of(cls, operation: str) -> Awaited:
        """The end of an operation."""
        return cls(f"{operation} has not ended", "; it goes on", "STILL_RUNNING")

    @classmethod
    def service_of(cls, model: str) -> Awaited:
        """That queries for a model are taken."""
        return cls(f"profiler and scheduler have not learnt of a deployment of {model}", "", "NOT_SERVED_YET")


class Waiting:
    """Pauses between looks at something, until the time is up."""

    def __init__(
        self,
        until: Awaited,
        timeout_seconds: float | None,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._until = until
        self._timeout_seconds = timeout_seconds
        self._limits = limits
        self._patience = Patience(limits.reconnect_seconds, clock)
        self._clock = clock
        self._begin = clock()
        self._pause = FIRST_LOOK_SECONDS

    def call_seconds(self) -> float:
        """How long the next look may take."""
        return max(SHORTEST_CALL_SECONDS, min(self._limits.call_seconds, self._left()))

    def pause(self, lost: UellmError | None = None) -> float:
        """Seconds until the next look; `lost` is what the last one ended with.

        Raises DeadlineExceededError when the time is up; `lost` where another look is no use.
        """
        left = self._left()
        if left <= 0:
            late = f"{self._until.not_yet} within {self._timeout_seconds:g} s{self._until.but}"
            raise DeadlineExceededError(late, reason=self._until.reason)
        if lost is not None:
            return min(self._patience.pause_after(lost), left)
        self._patience.renew()
        pause, self._pause = self._pause, min(1.5 * self._pause, LONGEST_LOOK_SECONDS)
        return min(pause, left)

    def _left(self) -> float:
        if self._timeout_seconds is None:
            return float("inf")
        return self._begin + self._timeout_seconds - self._clock()
