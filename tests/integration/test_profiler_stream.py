"""SubmitStream of a profiler on a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from tests.support.length_model import HashModel
from tests.support.profiler import MODEL, PARENT, Running, failure, running
from uellm.client import AsyncClient, Client, Endpoints, Submitted
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.rpc.errors import AlreadyExistsError, InvalidArgumentError
from uellm.rpc.status import from_status
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.query_pb2 import Query
from uellm.v1.stream_pb2 import DeploymentRecord

KEYS = ModelKeys(MODEL)


def streamed(identifier: str, prompt: str = "hello", **changes: Any) -> pb.SubmitStreamRequest:
    submit = pb.SubmitRequest(**{"parent": PARENT, "query_id": identifier, "query": Query(prompt=prompt), **changes})
    return pb.SubmitStreamRequest(correlation_id=f"c-{identifier}", submit=submit)


@pytest.fixture
async def prior(redis_server: EmbeddedRedis, published: DeploymentRecord) -> AsyncIterator[Running]:
    async with running(redis_server.url, stream_in_flight=8) as started:
        yield started


async def test_a_stream_accepts_refuses_and_ends(prior: Running, redis: RedisClient) -> None:
    requests = [
        streamed("good"),
        streamed("long", "x" * 300),
        streamed("empty", ""),
        streamed("elsewhere", parent="tenants/acme/models/other"),
        pb.SubmitStreamRequest(correlation_id="x" * 200, submit=streamed("q").submit),
        streamed("last"),
    ]
    answers = {one.correlation_id: one async for one in prior.stub.SubmitStream(iter(requests))}
    assert set(answers) == {request.correlation_id for request in requests}
    assert {key for key, one in answers.items() if one.HasField("accepted")} == {"c-good", "c-last"}
    assert answers["c-good"].accepted.name == f"{PARENT}/queries/good"
    restored = {}
    for key, one in answers.items():
        if one.HasField("refused"):
            status = status_pb2.Status.FromString(one.refused.status)
            assert (status.code, status.message) == (one.refused.code, one.refused.message)
            restored[key] = from_status(status)
    assert restored["c-long"].reason == "PROMPT_TOO_LONG"
    assert restored["c-elsewhere"].reason == "MODEL_NOT_DEPLOYED"
    for key, field in (("c-empty", "query.prompt"), ("x" * 200, "correlation_id")):
        error = restored[key]
        assert isinstance(error, InvalidArgumentError)
        assert [violation.field for violation in error.violations] == [field]
    assert await redis.xlen(KEYS.queue) == 2


async def test_a_stream_reads_no_more_than_it_may(
    redis_server: EmbeddedRedis, redis: RedisClient, published: DeploymentRecord, model: HashModel, tmp_path: Path
) -> None:
    settings = {"predictor": "fast", "predictor_adapter": tmp_path, "stream_in_flight": 8}
    async with running(redis_server.url, lambda folder, base: model, **settings) as profiler:
        model.entered()  # the trial
        model.batches.clear()
        model.hold()
        call = profiler.stub.SubmitStream()
        writing = asyncio.create_task(_write(call, [streamed(f"q{i}") for i in range(100)]))
        await asyncio.to_thread(model.entered)
        await writing
        model.release()
        answers = []
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer)
    assert {one.accepted.name for one in answers} == {f"{PARENT}/queries/q{i}" for i in range(100)}
    assert await redis.xlen(KEYS.queue) == 100
    # A batch takes what waits, up to 32.
    assert max(map(len, model.batches)) <= 8


async def test_a_stream_answers_overload_with_refusals_and_goes_on(
    profiler: Running, model: HashModel, redis: RedisClient
) -> None:
    model.hold()
    call = profiler.stub.SubmitStream()
    writing = asyncio.create_task(_write(call, [streamed(f"q{i}") for i in range(100)]))
    await asyncio.to_thread(model.entered)
    first = await call.read()
    assert first.refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    model.release()
    answers = [first]
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    await writing
    assert len({one.correlation_id for one in answers}) == len(answers) == 100
    assert await redis.xlen(KEYS.queue) == sum(one.HasField("accepted") for one in answers) >= 5


async def test_a_cancelled_stream_loses_nothing_that_was_accepted(prior: Running, redis: RedisClient) -> None:
    call = prior.stub.SubmitStream()
    names = []
    writing = asyncio.create_task(_write(call, [streamed(f"q{i}") for i in range(500)]))
    for _ in range(20):
        names.append((await call.read()).accepted.name)
    call.cancel()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    stored = {key.decode().rpartition(":")[2] for key in await redis.keys(f"uellm:{{{MODEL}}}:q:acme:*[0-9]")}
    assert {name.rpartition("/")[2] for name in names} <= stored
    again = [one async for one in prior.stub.SubmitStream(iter([streamed(f"q{i}") for i in range(500)]))]
    assert all(one.HasField("accepted") for one in again)
    assert sum(one.accepted.already_submitted for one in again) >= len(names)
    assert await redis.xlen(KEYS.queue) == 500


async def test_what_a_broken_request_leaves_before_it_is_answered(prior: Running) -> None:
    call = prior.channel.stream_stream(
        "/uellm.v1.ProfilerService/SubmitStream",
        request_serializer=lambda data: data,
        response_deserializer=pb.SubmitStreamResponse.FromString,
    )(iter([streamed("a").SerializeToString(), streamed("b").SerializeToString(), b"\xff\xff"]))
    answers = [await call.read(), await call.read()]
    assert {one.correlation_id for one in answers} == {"c-a", "c-b"}
    error = await failure(call.read())
    assert error.code == "INVALID_ARGUMENT"


async def test_the_clients_submit_many(prior: Running, redis: RedisClient) -> None:
    endpoints = Endpoints(profiler=f"127.0.0.1:{prior.port}")
    wanted: list[tuple[str, Any]] = [(f"p {i}", {"query_id": f"q{i}", "max_output_tokens": 5}) for i in range(300)]
    async with AsyncClient(endpoints, model=MODEL, tenant="acme") as client:
        answers = [answered async for answered in client.submit_many(wanted)]
    assert sorted(answered.index for answered in answers) == list(range(300))
    for answered in answers:
        assert isinstance(answered.result, Submitted)
        assert answered.result.name == f"{PARENT}/queries/q{answered.index}"
    assert await redis.xlen(KEYS.queue) == 300

    def again() -> list[Any]:
        with Client(endpoints, model=MODEL, tenant="acme") as client:
            return list(
                client.submit_many([("p 0", {"query_id": "q0", "max_output_tokens": 5}), ("x", {"query_id": "q1"})])
            )

    known, other = sorted(await asyncio.to_thread(again), key=lambda answered: answered.index)
    assert isinstance(known.result, Submitted)
    assert isinstance(other.result, AlreadyExistsError)
    assert await redis.xlen(KEYS.queue) == 300


async def _write(call: Any, requests: list[pb.SubmitStreamRequest]) -> None:
    for request in requests:
        await call.write(request)
    await call.done_writing()
