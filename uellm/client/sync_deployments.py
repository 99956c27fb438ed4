"""What is deployed, for threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from google.longrunning.operations_pb2 import Operation as OperationMessage

from uellm.client.deploying import (
    CHANGE_SECONDS,
    PLAN_SECONDS,
    SERVED_SECONDS,
    Awaited,
    Limits,
    OnProgress,
    OperationState,
    R,
    Strategy,
    Waiting,
    a_deployment,
    create_request,
    delete_request,
    is_unheard_of,
    nothing,
    rollback_request,
    whichever,
)
from uellm.client.following import Patience
from uellm.client.requests import profile_request
from uellm.client.sync_connection import Connection
from uellm.rpc.errors import UellmError
from uellm.v1.deployer_pb2 import (
    Deployment,
    DeploymentSpec,
    Drift,
    GetDeploymentRequest,
    GetOperationRequest,
    ReconcileRequest,
)
from uellm.v1.scheduler_pb2 import GetQueueRequest


class Deployments(Connection):
    """Deployments put in place, taken away and repaired. Connections that are lost lead to nothing being done twice."""

    def create_deployment(
        self,
        spec: DeploymentSpec,
        *,
        deployment_id: str = "",
        strategy: Strategy = "blue_green",
        validate_only: bool = False,
        request_id: str = "",
    ) -> Operation[Deployment]:
        """Deploy a model: returns when it is planned and the work has begun; `result` waits for the end.

        Args:
            spec: what is wanted; its `weights_path` is absolute, and one of the deployer and of Triton.
            deployment_id: last part of its name; default: made of the model and the plan.
            strategy: what becomes of the deployments that serve the same queue.
            validate_only: plan and check only; the operation is done, has no name, and holds what would be.
            request_id: a UUID of version 4; the same again returns the same operation. Default: a new one.

        Raises:
            InvalidArgumentError: the model or the spec is not supported; `violations` name the fields.
            ResourceExhaustedError: it does not fit; the message has the numbers.
            AlreadyExistsError: the name is taken, the very plan is deployed, or the request id was used otherwise.
            UnavailableError: the deployer does not answer.
        """
        request = create_request(spec, deployment_id, strategy, request_id, validate_only=validate_only)
        return self._begin(self._deployer.CreateDeployment, request, a_deployment)

    def delete_deployment(
        self, name: str, *, etag: str = "", drain_timeout_seconds: float | None = None, request_id: str = ""
    ) -> Operation[None]:
        """Take a deployment, by resource name, out of service and remove it.

        Args:
            name: `deployments/{deployment}`.
            etag: only if it is still this one; default: in any case.
            drain_timeout_seconds: after this what is in flight is cut off; default: 60.
            request_id: as of `create_deployment`.

        Raises NotFoundError; AbortedError for another etag; FailedPreconditionError while another operation on it runs.
        """
        request = delete_request(name, etag, drain_timeout_seconds, request_id)
        return self._begin(self._deployer.DeleteDeployment, request, nothing)

    def rollback_deployment(self, model: str = "", *, request_id: str = "") -> Operation[Deployment]:
        """Return a model, default: the client's, to what was replaced last, planned for the machine as it is now.

        Raises NotFoundError if the model is not served, FailedPreconditionError if there is nothing to return to;
        others as of `create_deployment`.
        """
        request = rollback_request(model or self._defaults.model, request_id)
        return self._begin(self._deployer.RollbackDeployment, request, a_deployment)

    def reconcile(self, *, validate_only: bool = False, restart_triton: bool = False) -> list[Drift]:
        """What differed between journal, repository, Triton and what is published; repaired, or only told.

        With `restart_triton` Triton is started again first; what serves is drained before, and loaded again after it.
        Waits for operations that run. Raises UnavailableError if Triton or Redis does not answer, and
        FailedPreconditionError if Triton is to be restarted by a deployer that cannot.
        """
        request = ReconcileRequest(validate_only=validate_only, restart_triton=restart_triton)
        return list(self._call(self._deployer.Reconcile, request, seconds=CHANGE_SECONDS).drifts)

    def get_deployment(self, name: str) -> Deployment:
        """A deployment by its resource name. Raises NotFoundError."""
        found: Deployment = self._call(self._deployer.GetDeployment, GetDeploymentRequest(name=name)).deployment
        return found

    def get_operation(self, name: str) -> Operation[Deployment | None]:
        """An operation by its name; its result is what it created, or None. Raises NotFoundError if it is long gone."""
        return self._operation(self._look(name), whichever)

    def wait_until_served(self, model: str = "", timeout_seconds: float = SERVED_SECONDS) -> None:
        """Wait until queries for a model, default: the client's, are taken: a moment after it was deployed.

        Raises DeadlineExceededError, reason NOT_SERVED_YET, when the time is up; UnavailableError.
        """
        name = model or self._defaults.model
        profile = profile_request("-", {"model": name, "allow_prior": True}, self._defaults)
        queue = GetQueueRequest(model=name)
        waiting = Waiting(Awaited.service_of(name), timeout_seconds, self._limits())
        while True:
            try:
                self._call(self._profiler.Profile, profile)
                if self._call(self._scheduler.GetQueue, queue).owner:
                    return
            except UellmError as error:
                if not is_unheard_of(error):
                    raise
            time.sleep(waiting.pause())

    def _begin(self, method: Any, request: Any, read: Callable[[OperationMessage], R]) -> Operation[R]:
        patience = Patience(self._submit_seconds)
        while True:
            try:
                return self._operation(self._call(method, request, seconds=PLAN_SECONDS), read)
            except UellmError as error:
                time.sleep(patience.pause_after(error))

    def _operation(self, message: OperationMessage, read: Callable[[OperationMessage], R]) -> Operation[R]:
        return Operation(message, read, self._look, self._limits())

    def _limits(self) -> Limits:
        return Limits(self._timeout_seconds, self._reconnect_seconds)

    def _look(self, operation: str, seconds: float = 0.0) -> OperationMessage:
        request = GetOperationRequest(name=operation)
        found: OperationMessage = self._call(self._deployer.GetOperation, request, seconds=seconds)
        return found


class Operation(OperationState[R]):
    """An operation of the deployer as it was seen last. It goes on whether anybody waits for it or not."""

    def __init__(
        self,
        message: OperationMessage,
        read: Callable[[OperationMessage], R],
        look: Callable[[str, float], OperationMessage],
        limits: Limits,
    ) -> None:
        super().__init__(message, read)
        self._look = look
        self._limits = limits

    def result(self, timeout_seconds: float | None = None, on_progress: OnProgress | None = None) -> R:
        """Wait for its end, also past lost connections, and return what it made.

        Raises DeadlineExceededError, reason STILL_RUNNING, when the time is up; UnavailableError if the deployer cannot
        be reached again; else what the operation failed with.
        """
        waiting = Waiting(Awaited.end_of(self.name), timeout_seconds, self._limits)
        lost: UellmError | None = None
        while True:
            if self.done:
                return self._outcome()
            if on_progress is not None:
                on_progress(self.progress)
            time.sleep(waiting.pause(lost))
            try:
                self._message, lost = self._look(self.name, waiting.call_seconds()), None
            except UellmError as error:
                lost = error
