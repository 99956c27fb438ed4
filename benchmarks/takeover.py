"""Measures how long a queue is without its owner: a scheduler with 10,000 queries is killed, another one takes them.

Two schedulers as processes of their own on the embedded Redis, with the lease that they have by default; the model's
deployment is draining, so that all queries wait. With `--begun` a share of them has run before, so that the new owner
has to read how far they got. Run with `.venv/bin/python benchmarks/takeover.py`. Figures go to stdout as JSON; they
depend on the machine, so no test asserts them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.deployments import DeploymentPublisher
from uellm.messaging.keys import ModelKeys
from uellm.messaging.queries import Accepted, DispatchRow, EventRow, QueryStore, Submission
from uellm.v1.query_pb2 import LengthDistribution, Query, ResourceProfile, TokenIds
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_DRAINING,
    Backlog,
    Batched,
    DeploymentRecord,
    ProfiledQuery,
    QueryEvent,
    QueryRecord,
    TokenDelta,
)

MODEL = "bench"
KEYS = ModelKeys(MODEL)
REPLICAS = ("one", "two")
PAGE = 200
LIMIT_SECONDS = 120.0


def submission(number: int) -> Submission:
    """A query as the profiler writes it, with a prompt of 100 tokens."""
    name = f"tenants/bench/models/{MODEL}/queries/q{number}"
    length = LengthDistribution(p50_tokens=80, p90_tokens=160, p99_tokens=250, limit_tokens=256)
    entry = ProfiledQuery(schema_version=1, name=name, profile=ResourceProfile(prompt_tokens=100, output_length=length))
    record = QueryRecord(schema_version=1, query=Query(name=name), prompt_token_ids=TokenIds(ids=range(100)))
    return Submission(name, str(number), record, entry)


async def fill(redis: RedisClient, count: int) -> list[str]:
    """Put so many queries on the queue; returns their names."""
    store = QueryStore(redis)
    made = [submission(number) for number in range(count)]
    for begin in range(0, count, PAGE):
        answers = await asyncio.gather(*(store.submit(one, count) for one in made[begin : begin + PAGE]))
        if not all(isinstance(answer, Accepted) for answer in answers):
            raise RuntimeError("not everything was accepted")
    return [one.name for one in made]


async def begin(redis: RedisClient, names: list[str]) -> None:
    """Have the present owner's lease begin an attempt of each query, and deliver 20 pieces of its answer."""
    store, epoch = QueryStore(redis), int(await redis.get(KEYS.owner_epoch))
    batched = QueryEvent(schema_version=1, batched=Batched(attempt=1))
    for at in range(0, len(names), PAGE):
        page = names[at : at + PAGE]
        await store.dispatch(MODEL, epoch, [DispatchRow(name, 0, batched) for name in page])
        for piece in range(20):
            delta = TokenDelta(attempt=1, first_token_index=piece, token_ids=[piece], text="word ")
            await store.append(MODEL, epoch, [EventRow(n, 1, QueryEvent(token_delta=delta)) for n in page])


async def takeover(folder: Path, count: int, begun: float) -> dict[str, float]:
    """One takeover; seconds from the SIGKILL of the owner."""
    redis = EmbeddedRedis(folder / "redis", free_port())
    schedulers = {name: _scheduler(name, redis.url, folder) for name in REPLICAS}
    redis.start()
    try:
        redis.wait_ready()
        client = connect(redis.url)
        clock = RedisClock(client)
        await clock.synchronise()
        record = DeploymentRecord(name="deployments/bench", model=MODEL, state=DEPLOYMENT_STATE_DRAINING)
        publishing = asyncio.create_task(_publish(DeploymentPublisher(client, clock), record))
        for process in schedulers.values():
            process.start()
            await asyncio.to_thread(process.wait_ready, LIMIT_SECONDS)
        names = await fill(client, count)
        await until(lambda: _published(client, count))
        await begin(client, names[: round(begun * count)])
        owner = (await client.get(KEYS.owner)).decode()
        await client.delete(KEYS.backlog)
        start = time.perf_counter()
        os.kill(schedulers[owner].pid or 0, signal.SIGKILL)
        figures = {}
        await until(lambda: _owned_by_another(client, owner))
        figures["lease_taken_s"] = round(time.perf_counter() - start, 2)
        await client.delete(KEYS.backlog)  # what the old one published last
        await until(lambda: _published(client, count))
        figures["backlog_published_s"] = round(time.perf_counter() - start, 2)
        publishing.cancel()
        await client.aclose()
        return figures
    finally:
        for process in schedulers.values():
            process.stop()
        redis.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition; raises TimeoutError."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def _published(redis: RedisClient, count: int) -> bool:
    return bool(Backlog.FromString(await redis.get(KEYS.backlog) or b"").queued == count)


async def _owned_by_another(redis: RedisClient, owner: str) -> bool:
    return (await redis.get(KEYS.owner) or owner.encode()).decode() != owner


async def _publish(publisher: DeploymentPublisher, record: DeploymentRecord) -> None:
    while True:
        await publisher.publish(record)
        await asyncio.sleep(10)


def _scheduler(name: str, redis_url: str, folder: Path) -> ManagedProcess:
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "uellm_scheduler", "--listen", address, "--redis-url", redis_url, "--replica", name]
    argv += ["--log-level", "warning"]
    return ManagedProcess(name, argv, log=folder / f"{name}.log", ready=lambda: _serves(address))


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def measure(count: int, begun: float, rounds: int) -> dict[str, Any]:
    """All rounds, and the worst."""
    measured = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            measured.append(await takeover(Path(folder), count, begun))
    backlog = [figures["backlog_published_s"] for figures in measured]
    return {
        "pending": count,
        "begun": begun,
        "load_average": round(os.getloadavg()[0], 1),
        "rounds": measured,
        "median_s": median(backlog),
        "worst_s": max(backlog),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pending", type=int, default=10_000)
    parser.add_argument("--begun", type=float, default=0.0, help="share of the queries that has run before, 0 to 1")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(json.dumps(asyncio.run(measure(arguments.pending, arguments.begun, arguments.rounds)), indent=2))


if __name__ == "__main__":
    main()
