"""A server whose service raises whatever it is asked to, in the process of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.exceptions
from google.protobuf.duration_pb2 import Duration
from prometheus_client import REGISTRY

from uellm.rpc import errors
from uellm.rpc.server import ServerConfig, serve
from uellm.rpc.status import from_rpc_error
from uellm.v1 import profiler_pb2, profiler_pb2_grpc, query_pb2

SERVICE = "uellm.v1.ProfilerService"
ROOT = Path(__file__).resolve().parents[2]
FREE = "127.0.0.1:0"
TIMEOUT = 10.0

REFUSAL = query_pb2.Refusal(
    reason=query_pb2.REFUSAL_REASON_QUEUE_FULL,
    message="the queue of m is full",
    queue_full=query_pb2.QueueFull(depth=9, limit=9, retry_after=Duration(seconds=3)),
)
RAISED: dict[str, Exception] = {
    "invalid": errors.InvalidArgumentError([errors.FieldViolation("query.prompt", "must not be empty")]),
    "many": errors.InvalidArgumentError([errors.FieldViolation(f"queries[{i}]", "ü" * 300) for i in range(1_000)]),
    "missing": errors.NotFoundError("deployment", "deployments/x"),
    "exists": errors.AlreadyExistsError("query", "tenants/a/models/b/queries/c"),
    "state": errors.FailedPreconditionError("models/b", "is draining", reason="DRAINING"),
    "conflict": errors.AbortedError("the etag has changed"),
    "down": errors.UnavailableError("Triton does not answer", retry_after_seconds=2.5),
    "memory": errors.ResourceExhaustedError("gpu0", "has 3 bytes left", reason="NO_GPU_MEMORY"),
    "who": errors.UnauthenticatedError("a token is needed"),
    "may": errors.PermissionDeniedError("not your tenant"),
    "old": errors.OutOfRangeError("not kept any more", reason="CURSOR_TOO_OLD"),
    "late": errors.DeadlineExceededError("no time left"),
    "later": errors.UnimplementedError("not in this version"),
    "refused": errors.RefusedError(REFUSAL),
    "redis": redis.exceptions.ConnectionError("Error 111 connecting to 10.0.0.7:6379"),
    "redis-slow": redis.exceptions.TimeoutError("Timeout reading from 10.0.0.7:6379"),
    "bug": ZeroDivisionError("secret internals"),
}
"""What the servicer raises for a query of this id."""

CODES = {
    "invalid": "INVALID_ARGUMENT",
    "many": "INVALID_ARGUMENT",
    "missing": "NOT_FOUND",
    "exists": "ALREADY_EXISTS",
    "state": "FAILED_PRECONDITION",
    "conflict": "ABORTED",
    "down": "UNAVAILABLE",
    "memory": "RESOURCE_EXHAUSTED",
    "who": "UNAUTHENTICATED",
    "may": "PERMISSION_DENIED",
    "old": "OUT_OF_RANGE",
    "late": "DEADLINE_EXCEEDED",
    "later": "UNIMPLEMENTED",
    "refused": "RESOURCE_EXHAUSTED",
    "redis": "UNAVAILABLE",
    "redis-slow": "UNAVAILABLE",
    "bug": "INTERNAL",
}


class Raising(profiler_pb2_grpc.ProfilerServiceServicer):
    """Answers `Submit`, unless the query's id asks for an error; waits for ever for the id `wait`."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.outages = 0

    async def Profile(self, _request: Any, _context: Any) -> Any:
        if self.outages:
            self.outages -= 1
            raise RAISED["down"]
        return profiler_pb2.ProfileResponse()

    async def Submit(self, request: Any, context: Any) -> Any:
        if request.query_id in RAISED:
            raise RAISED[request.query_id]
        if request.query_id == "wait":
            self.waiting.set()
            await asyncio.Event().wait()
        if request.query_id == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by hand")
        return profiler_pb2.SubmitResponse(name=f"{request.parent}/queries/{request.query_id}")

    async def SubmitStream(self, request_iterator: Any, context: Any) -> Any:
        async for request in request_iterator:
            answer = await self.Submit(request.submit, context)
            yield profiler_pb2.SubmitStreamResponse(correlation_id=request.correlation_id, accepted=answer)


@dataclass
class Running:
    """A server of this process."""

    target: str
    servicer: Raising
    stop: asyncio.Event
    task: asyncio.Task[None]
    happened: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def running(config: ServerConfig | None = None, ready: Callable | None = None) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    started: asyncio.Future[int] = loop.create_future()
    servicer, stop, happened = Raising(), asyncio.Event(), []

    @contextlib.asynccontextmanager
    async def lifecycle() -> AsyncIterator[None]:
        happened.append("enter")
        yield
        happened.append("exit")

    task = asyncio.create_task(
        serve(
            config or ServerConfig(listen=FREE, shutdown_grace_seconds=0.2),
            [(profiler_pb2_grpc.add_ProfilerServiceServicer_to_server, servicer)],
            [SERVICE],
            lifecycle=lifecycle(),
            ready=ready,
            on_started=started.set_result,
            stop=stop,
        )
    )
    await asyncio.wait({task, started}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        yield Running(f"127.0.0.1:{started.result()}", servicer, stop, task, happened)
    finally:
        stop.set()
        await asyncio.wait_for(task, TIMEOUT)


async def failure(call: Awaitable[Any]) -> errors.UellmError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def handled(method: str, code: str) -> float:
    labels = {"service": SERVICE, "method": method, "code": code}
    return REGISTRY.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    end = asyncio.get_running_loop().time() + TIMEOUT
    while not condition():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.01)
