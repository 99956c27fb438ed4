"""Measures submissions a second: Submit, SubmitStream and the client's `submit_many`, with the statistical prior.

A profiler as a process of its own, on the embedded Redis, for a model that is deployed by name only: nothing is served.
Run with `.venv/bin/python benchmarks/submit.py`. Figures go to stdout as JSON; they depend on the machine, so no test
asserts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc

from uellm.client import AsyncClient, Endpoints
from uellm.local.model import default_model
from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import connect
from uellm.messaging.deployments import DeploymentPublisher
from uellm.rpc.channel import open_channel
from uellm.rpc.errors import UellmError
from uellm.v1.profiler_pb2 import SubmitRequest, SubmitStreamRequest
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import GenerationParameters, Query
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, DeploymentRecord, EngineLimits, ModelFacts, StepTimePrior

MODEL = "bench"
PARENT = f"tenants/bench/models/{MODEL}"
PROMPT = "Explain in three sentences why the sky is blue, and why sunsets are red."
REFRESH_SECONDS = 10.0

Run = Callable[[int], Awaitable[None]]


def query() -> Query:
    """What is submitted, again and again."""
    return Query(prompt=PROMPT, generation=GenerationParameters(max_output_tokens=128))


def unary(stub: Any, concurrency: int) -> Run:
    """So many callers of Submit, each with its next call when the one before is answered."""

    async def run(count: int) -> None:
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await stub.Submit(SubmitRequest(parent=PARENT, query=query()))

        await asyncio.gather(*(caller() for _ in range(concurrency)))

    return run


def streamed(stub: Any) -> Run:
    """One SubmitStream."""

    async def run(count: int) -> None:
        async def requests() -> AsyncIterator[SubmitStreamRequest]:
            for number in range(count):
                submit = SubmitRequest(parent=PARENT, query=query())
                yield SubmitStreamRequest(correlation_id=str(number), submit=submit)

        answers = [one async for one in stub.SubmitStream(requests())]
        if len(answers) != count or any(one.HasField("refused") for one in answers):
            raise RuntimeError("not everything was accepted")

    return run


def client_many(client: AsyncClient) -> Run:
    """The client's `submit_many`."""

    async def run(count: int) -> None:
        wanted = [(PROMPT, {"max_output_tokens": 128}) for _ in range(count)]
        async for answered in client.submit_many(wanted):  # type: ignore[arg-type]
            if isinstance(answered.result, UellmError):
                raise answered.result

    return run


async def rates(run: Run, count: int, rounds: int) -> dict[str, float]:
    """Submissions a second over some rounds, the first of them not counted."""
    measured = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        await run(count)
        measured.append(count / (time.perf_counter() - begin))
    del measured[0]
    return {"median_per_s": round(median(measured), 1), "min_per_s": round(min(measured), 1)}


@contextlib.asynccontextmanager
async def profiler(folder: Path) -> AsyncIterator[str]:
    """Redis, a deployment in name, and a profiler; yields its address."""
    redis = EmbeddedRedis(folder / "redis", free_port())
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "uellm_profiler", "--listen", address, "--redis-url", redis.url]
    argv += ["--predictor", "prior", "--queue-limit", "100000000", "--log-level", "warning"]
    process = ManagedProcess("profiler", argv, log=folder / "profiler.log", ready=lambda: _answers(address))
    redis.start()
    try:
        redis.wait_ready()
        connection = connect(redis.url)
        clock = RedisClock(connection)
        await clock.synchronise()
        publishing = asyncio.create_task(_publish(DeploymentPublisher(connection, clock)))
        process.start()
        await asyncio.to_thread(process.wait_ready, 120.0)
        yield address
        publishing.cancel()
        await connection.aclose()
    finally:
        process.stop()
        redis.stop()


async def _publish(publisher: DeploymentPublisher) -> None:
    record = DeploymentRecord(
        name="deployments/bench",
        model=MODEL,
        state=DEPLOYMENT_STATE_READY,
        facts=ModelFacts(context_limit_tokens=2_048, kv_bytes_per_token=46_080, vocabulary_size=49_152),
        limits=EngineLimits(context_tokens=2_048, max_output_tokens=512),
        tokenizer_path=str(default_model()),
        step_time_prior=StepTimePrior(),
        traffic_share=1,
    )
    while True:
        await publisher.publish(record)
        await asyncio.sleep(REFRESH_SECONDS)


def _answers(address: str) -> bool:
    try:
        with grpc.insecure_channel(address) as channel:
            request = SubmitRequest(parent=PARENT, query=query())
            ProfilerServiceStub(channel).Submit(request, timeout=5)  # type: ignore[no-untyped-call]
    except grpc.RpcError:
        return False
    return True


async def measure(count: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {"submissions": count, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            profiler(Path(folder)) as address,
            open_channel(address) as channel,
            AsyncClient(Endpoints(profiler=address), model=MODEL, tenant="bench") as client,
        ):
            stub = ProfilerServiceStub(channel)  # type: ignore[no-untyped-call]
            for concurrency in (1, 64):
                figures[f"submit_{concurrency}_callers"] = await rates(unary(stub, concurrency), count, rounds)
            figures["submit_stream"] = await rates(streamed(stub), count, rounds)
            figures["submit_many"] = await rates(client_many(client), count, rounds)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submissions", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(measure(arguments.submissions, arguments.rounds)), indent=2))


if __name__ == "__main__":
    main()
