"""The connections of the client for asyncio."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc

from uellm.client.endpoints import DEFAULT_MODEL, DEFAULT_TENANT, Endpoints, client_channel_options
from uellm.client.requests import (
    Defaults,
)
from uellm.rpc.channel import ClientTls
from uellm.rpc.status import from_rpc_error
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub


class AsyncConnection:
    """Channels to the three services, and calls over them."""

    def __init__(
        self,
        endpoints: Endpoints | None = None,
        *,
        model: str = DEFAULT_MODEL,
        tenant: str = DEFAULT_TENANT,
        tls: ClientTls | None = None,
        timeout_seconds: float = 30.0,
        submit_seconds: float = 5.0,
        reconnect_seconds: float = 60.0,
    ) -> None:
        """Nothing is connected yet.

        Args:
            endpoints: where the services answer; default: `Endpoints.from_environment()`.
            model: logical model of queries that name none.
            tenant: tenant of queries that name none.
            tls: None for plain text.
            timeout_seconds: of one call that does not stream.
            submit_seconds: how long `submit` tries to reach the profiler, and what begins an operation the deployer.
            reconnect_seconds: how long `stream` tries to reach the scheduler again after a lost connection, and the
                `result` of an operation the deployer.
        """
        where = endpoints or Endpoints.from_environment()
        self._channels = [_channel(target, tls) for target in (where.profiler, where.scheduler, where.deployer)]
        self._profiler = ProfilerServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self._scheduler = SchedulerServiceStub(self._channels[1])  # type: ignore[no-untyped-call]
        self._deployer = DeployerServiceStub(self._channels[2])  # type: ignore[no-untyped-call]
        self._defaults = Defaults(model, tenant)
        self._timeout_seconds = timeout_seconds
        self._submit_seconds = submit_seconds
        self._reconnect_seconds = reconnect_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; streams end."""
        for channel in self._channels:
            await channel.close(None)

    async def _call(self, method: Any, request: Any, *, seconds: float = 0.0) -> Any:
        try:
            return await method(request, timeout=seconds or self._timeout_seconds)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def is_cancelled() -> bool:
    """Whether it is this task that is cancelled: grpc.aio raises the same when a server ends a call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _channel(target: str, tls: ClientTls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=client_channel_options())
    return grpc.aio.secure_channel(target, tls.credentials(), options=client_channel_options())
