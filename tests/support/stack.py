"""Scheduler processes on real Redis and real Triton, with a tiny model: what fault tests need."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from uellm.local.process import free_port
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import DeploymentPublisher
from uellm.messaging.keys import query_keys
from uellm.messaging.queries import Accepted, QueryStore, Submission
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import LengthDistribution, Outcome, Query, ResourceProfile, TokenIds
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_STATIC,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
    ProfiledQuery,
    QueryEvent,
    QueryRecord,
)

MODEL = "tiny"
TRITON_MODEL = "tiny--0"


def record_of(endpoint: str, *, rows: int = 4) -> DeploymentRecord:
    """A deployment of the tiny model."""
    return DeploymentRecord(
        name="deployments/tiny",
        model=MODEL,
        triton_model=TRITON_MODEL,
        triton_endpoint=endpoint,
        engine_kind=ENGINE_KIND_STATIC,
        state=DEPLOYMENT_STATE_READY,
        facts=ModelFacts(kv_bytes_per_token=1024, context_limit_tokens=512),
        limits=EngineLimits(
            context_tokens=512,
            max_output_tokens=400,
            max_batch_rows=rows,
            max_concurrent_batches=1,
            kv_budget_bytes=10**9,
            resumable=True,
        ),
        traffic_share=1.0,
    )


def make_submission(identifier: str, *, tokens: int, prompt: Sequence[int] = (), endless: bool = True) -> Submission:
    """A greedy query of exactly (`endless`) or at most `tokens` tokens."""
    name = f"tenants/t/models/{MODEL}/queries/{identifier}"
    query = Query(name=name)
    query.generation.max_output_tokens = tokens
    query.generation.repetition_penalty = 1.0
    query.generation.top_p = 1.0
    if endless:
        query.engine_parameters.update({"ignore_eos": True})
    ids = prompt or [ord(letter) for letter in identifier]
    length = LengthDistribution(p50_tokens=tokens, p90_tokens=tokens, p99_tokens=tokens, limit_tokens=tokens)
    entry = ProfiledQuery(name=name, profile=ResourceProfile(prompt_tokens=len(ids), output_length=length))
    record = QueryRecord(schema_version=1, query=query, prompt_token_ids=TokenIds(ids=ids))
    return Submission(name, identifier, record, entry)


@dataclass
class SchedulerProcess:
    """`python -m uellm_scheduler` as a process of its own."""

    redis_url: str
    replica: str
    log: Path
    lease_seconds: float = 1.0
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> None:
        argv = [sys.executable, "-m", "uellm_scheduler", "--listen", f"127.0.0.1:{self.port}"]
        argv += ["--redis-url", self.redis_url, "--replica", self.replica, "--lease-seconds", str(self.lease_seconds)]
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(root), str(root / "services" / "scheduler")])
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*argv, "--policy", "fifo", *flags],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path},
            )

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        """Terminate it if it runs; returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 30)
            yield SchedulerServiceStub(channel)


@dataclass
class Bench:
    """A store with a published deployment."""

    redis: RedisClient
    record: DeploymentRecord

    @property
    def store(self) -> QueryStore:
        return QueryStore(self.redis)

    async def publish(self) -> None:
        clock = RedisClock(self.redis)
        await clock.synchronise()
        await DeploymentPublisher(self.redis, clock).publish(self.record)

    async def submit(self, *made: Submission) -> None:
        store = self.store
        for one in made:
            assert isinstance(await store.submit(one, 10_000), Accepted)

    async def events(self, name: str) -> list[QueryEvent]:
        """The stored events; the outcome, which is in the record, left out."""
        stream = await self.redis.xrange(query_keys(name).events)
        return [QueryEvent.FromString(fields[b"e"]) for _, fields in stream if b"e" in fields]

    async def outcome(self, name: str) -> Outcome | None:
        stored = await self.store.read(name)
        return stored.outcome if stored else None

    async def all_finished(self, names: Sequence[str]) -> bool:
        return all(stored is not None and stored.outcome for stored in await self.store.read_many(names))

    async def check(self, names: Sequence[str]) -> list[Outcome]:
        """Every query one outcome; concatenated deltas equal its text; nothing left on the queue."""
        outcomes = []
        for name in names:
            stream = await self.redis.xrange(query_keys(name).events)
            ends = [fields for _, fields in stream if b"outcome" in fields]
            assert len(ends) == 1, f"{name} has {len(ends)} outcomes"
            assert b"outcome" in stream[-1][1], "something came after the outcome"
            outcome = await self.outcome(name)
            assert outcome is not None
            deltas = delivered(await self.events(name))
            assert "".join(delta.text for delta in deltas) == outcome.text
            indices = [delta.first_token_index + at for delta in deltas for at in range(len(delta.token_ids))]
            assert indices == list(range(outcome.output_tokens))
            outcomes.append(outcome)
        assert await self.redis.xlen(f"uellm:{{{MODEL}}}:queue") == 0
        assert int(await self.redis.get(f"uellm:{{{MODEL}}}:depth")) == 0
        return outcomes


def delivered(events: Sequence[QueryEvent]) -> list[Any]:
    """The deltas that count: those after the last restart."""
    deltas: list[Any] = []
    for event in events:
        if event.HasField("restarted"):
            deltas = []
        elif event.HasField("token_delta"):
            deltas.append(event.token_delta)
    return deltas


async def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until an asynchronous condition holds."""
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.02)


async def owner_is(stub: Any, replica: str) -> bool:
    """Whether a replica owns the tiny model's queue."""
    try:
        return bool((await stub.GetQueue(pb.GetQueueRequest(model=MODEL))).owner == replica)
    except grpc.aio.AioRpcError:
        return False
