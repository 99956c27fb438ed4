"""Deploys a model on a local stack through the deployer's own interface."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import grpc
from google.longrunning.operations_pb2 import Operation

from uellm.local.supervise import Reporter, StackError, StoppedError, Stopping
from uellm.rpc.channel import channel_options
from uellm.rpc.errors import AlreadyExistsError, NotFoundError, UellmError
from uellm.rpc.status import from_rpc_error, from_status
from uellm.v1 import deployer_pb2, profiler_pb2, query_pb2, scheduler_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub

POLL_SECONDS = 0.1
SERVED_SECONDS = 30.0
"""How long the other services may take to learn of a deployment."""
CALL_SECONDS = 60.0


def deploy(endpoint: str, spec: deployer_pb2.DeploymentSpec, reporter: Reporter, stopping: Stopping) -> None:
    """Create the deployment that `spec` describes, unless there is the very same; raises StackError, StoppedError."""
    request = deployer_pb2.CreateDeploymentRequest(spec=spec, request_id=str(uuid.uuid4()))
    with grpc.insecure_channel(endpoint, options=channel_options()) as channel:
        stub = DeployerServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            operation = _call(stub.CreateDeployment, request)
            _follow(stub, operation, reporter, stopping)
        except AlreadyExistsError:
            return  # from an earlier run; the deployer has loaded it again
        except UellmError as error:
            raise StackError(f"the deployment of {spec.model} failed: {error.message}") from error


def await_served(profiler: str, scheduler: str, model: str, stopping: Stopping) -> None:
    """Wait until queries for the model are accepted and somebody owns its queue; raises StackError, StoppedError."""
    with (
        grpc.insecure_channel(profiler, options=channel_options()) as to_profiler,
        grpc.insecure_channel(scheduler, options=channel_options()) as to_scheduler,
    ):
        profilers: Any = ProfilerServiceStub(to_profiler)  # type: ignore[no-untyped-call]
        schedulers: Any = SchedulerServiceStub(to_scheduler)  # type: ignore[no-untyped-call]
        query = query_pb2.Query(prompt="Hello")
        profile = profiler_pb2.ProfileRequest(parent=f"tenants/local/models/{model}", query=query)
        queue = scheduler_pb2.GetQueueRequest(model=model)

        def served() -> bool:
            _call(profilers.Profile, profile)
            return bool(_call(schedulers.GetQueue, queue).owner)

        _await(served, f"{model} is deployed, but", stopping)


def _follow(stub: DeployerServiceStub, operation: Operation, reporter: Reporter, stopping: Stopping) -> None:
    said = ""
    while not operation.done:
        progress = deployer_pb2.DeploymentProgress()
        operation.metadata.Unpack(progress)
        if progress.message and progress.message != said:
            said = progress.message
            stage = deployer_pb2.DeploymentStage.Name(progress.stage).removeprefix("DEPLOYMENT_STAGE_").lower()
            reporter.step(f"deploying: {stage} ({said})")
        if stopping():
            raise StoppedError
        time.sleep(POLL_SECONDS)
        operation = _call(stub.GetOperation, deployer_pb2.GetOperationRequest(name=operation.name))
    if operation.HasField("error"):
        raise from_status(operation.error)


def _await(condition: Callable[[], bool], what: str, stopping: Stopping) -> None:
    deadline = time.monotonic() + SERVED_SECONDS
    why = "nobody owns its queue"
    while True:
        try:
            if condition():
                return
        except NotFoundError as error:
            why = error.message
        except UellmError as error:
            why = error.message
            if error.reason != "MODEL_NOT_DEPLOYED":
                raise StackError(f"{what} {why}") from error
        if time.monotonic() >= deadline:
            raise StackError(f"{what} {why}")
        if stopping():
            raise StoppedError
        time.sleep(POLL_SECONDS)


def _call(method: Any, request: Any) -> Any:
    try:
        return method(request, timeout=CALL_SECONDS)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
