"""The scheduler's client of an engine, against a Triton in name that ends its calls as a real one does at its worst."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from uellm_scheduler.adapters import triton
from uellm_scheduler.adapters.triton import TritonEngines
from uellm_scheduler.app.effects import EngineRow, RunBatch
from uellm_scheduler.app.ports import EngineError

from tests.support.stack import make_submission, record_of

Answer = Callable[[str, Any], AsyncIterator[service_pb2.ModelStreamInferResponse]]


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each action as a test wants it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            action = request.parameters["action"].string_param
            async for response in self._answer(action, context):
                yield response


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[TritonEngines, RunBatch]]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(answer), server)
    await server.start()
    engines = TritonEngines()
    made = make_submission("q", tokens=5)
    batch = RunBatch("b", record_of(f"127.0.0.1:{port}"), (EngineRow(made.name, made.record),))
    try:
        yield engines, batch
    finally:
        await engines.close()
        await server.stop(0)


def described(**facts: Any) -> service_pb2.ModelStreamInferResponse:
    response = service_pb2.ModelStreamInferResponse()
    output = response.infer_response.outputs.add(name="step_aggregates", datatype="BYTES", shape=[1])
    output.contents.bytes_contents.append(json.dumps(facts).encode())
    return response


async def drain(engines: TritonEngines, batch: RunBatch) -> None:
    async for _ in engines.run(batch, 1):
        pass


async def test_a_call_that_the_server_cancels_is_a_lost_engine_and_no_cancellation_of_ours() -> None:
    async def answer(action: str, context: Any) -> AsyncIterator[Any]:
        await context.abort(grpc.StatusCode.CANCELLED, "going away")
        yield

    async with serving(answer) as (engines, batch):
        with pytest.raises(EngineError):
            await drain(engines, batch)
        assert not await engines.ready(batch.deployment)
        with pytest.raises(EngineError):
            await engines.cancel(batch.deployment, "b", [])


async def test_a_silent_batch_that_the_engine_does_not_know_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "SILENCE_SECONDS", 0.05)

    async def answer(action: str, context: Any) -> AsyncIterator[Any]:
        if action == "describe":
            yield described(batch_ids=["another"])
        else:
            await asyncio.Event().wait()

    async with serving(answer) as (engines, batch):
        assert await engines.ready(batch.deployment)
        with pytest.raises(EngineError, match="lost"):
            await asyncio.wait_for(drain(engines, batch), 10)


async def test_a_silent_batch_that_the_engine_knows_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "SILENCE_SECONDS", 0.02)
    asked = asyncio.Event()
    asked_times = 0

    async def answer(action: str, context: Any) -> AsyncIterator[Any]:
        nonlocal asked_times
        if action == "describe":
            asked_times += 1
            if asked_times == 5:
                asked.set()
            yield described(batch_ids=["b"])
        else:
            await asked.wait()

    async with serving(answer) as (engines, batch):
        await asyncio.wait_for(drain(engines, batch), 10)
    assert asked_times >= 5


async def test_our_own_cancellation_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    running = asyncio.Event()

    async def answer(action: str, context: Any) -> AsyncIterator[Any]:
        running.set()
        await asyncio.Event().wait()
        yield

    async with serving(answer) as (engines, batch):
        task = asyncio.create_task(drain(engines, batch))
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
