"""A profiler in this process, on a real Redis, for a model that is deployed by name only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from uellm_profiler.__main__ import serve_profiler
from uellm_profiler.adapters.loader import ReadAdapter
from uellm_profiler.config import ProfilerSettings

from uellm.cost.steps import StepTime
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import DeploymentPublisher
from uellm.rpc.channel import open_channel
from uellm.rpc.errors import UellmError
from uellm.rpc.status import from_rpc_error
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import GenerationParameters, Query
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, DeploymentRecord, EngineLimits, ModelFacts

MODEL = "tiny"
PARENT = f"tenants/acme/models/{MODEL}"
CONTEXT = 256
TIMEOUT = 20.0


@dataclass
class Running:
    stub: Any
    channel: grpc.aio.Channel
    port: int

    async def submit(self, query: Query, query_id: str = "", parent: str = PARENT) -> pb.SubmitResponse:
        request = pb.SubmitRequest(parent=parent, query_id=query_id, query=query)
        response: pb.SubmitResponse = await self.stub.Submit(request)
        return response


async def publish_tiny(redis: RedisClient, tokenizer_folder: Path) -> DeploymentRecord:
    """Say that the tiny model is deployed."""
    clock = RedisClock(redis)
    await clock.synchronise()
    record = DeploymentRecord(
        name="deployments/tiny-1",
        model=MODEL,
        state=DEPLOYMENT_STATE_READY,
        facts=ModelFacts(context_limit_tokens=512, kv_bytes_per_token=512, vocabulary_size=264),
        limits=EngineLimits(context_tokens=CONTEXT, max_output_tokens=128),
        tokenizer_path=str(tokenizer_folder),
        step_time_prior=StepTime(0.01, 0.001, 0, 0.0001, 0.02).to_prior("measured"),
        traffic_share=1,
        default_generation=GenerationParameters(repetition_penalty=1.15),
    )
    await DeploymentPublisher(redis, clock).publish(record)
    return record


@contextlib.asynccontextmanager
async def running(redis_url: str, read_adapter: ReadAdapter | None = None, **settings: Any) -> AsyncIterator[Running]:
    """A profiler with the prior, unless the settings say otherwise."""
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    settings = {"predictor": "prior", "shutdown_grace_seconds": 1, **settings}
    configured = ProfilerSettings(listen="127.0.0.1:0", redis_url=redis_url, **settings)
    serving = serve_profiler(configured, on_started=started.set_result, stop=stop, read_adapter=read_adapter)
    task = asyncio.create_task(serving)
    await asyncio.wait({task, started}, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    try:
        async with open_channel(f"127.0.0.1:{started.result()}") as channel:
            yield Running(ProfilerServiceStub(channel), channel, started.result())
    finally:
        stop.set()
        await asyncio.wait_for(task, TIMEOUT)


async def failure(call: Awaitable[Any]) -> UellmError:
    """The error with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition, within a bound."""
    deadline = time.monotonic() + TIMEOUT
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
