"""A real Triton with the static engine and a tiny model; a profiler for that model whose predictor can be held."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis

from tests.support import rpc
from tests.support.length_model import HashModel
from tests.support.profiler import Running, publish_tiny, running
from tests.support.stack import TRITON_MODEL, Bench, SchedulerProcess, owner_is, record_of, until
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from tests.support.triton import load, start_triton, write_static_engine
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import EmbeddedTriton
from uellm.messaging.connection import RedisClient
from uellm.rpc.channel import open_channel
from uellm.v1.stream_pb2 import DeploymentRecord


@pytest.fixture(scope="session")
def tiny_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Triton with the tiny model loaded as `tiny--0`."""
    folder = tmp_path_factory.mktemp("tiny-triton")
    weights = make_tiny_model(folder / "weights")
    (folder / "models").mkdir()
    server = start_triton(folder)
    try:
        write_static_engine(folder / "models", TRITON_MODEL, weights)
        load(server, TRITON_MODEL)
        yield server
    finally:
        server.stop()


@pytest.fixture
async def server() -> AsyncIterator[rpc.Running]:
    """A server whose servicer raises what it is asked to."""
    async with rpc.running() as started:
        yield started


@pytest.fixture
async def channel(server: rpc.Running) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it."""
    async with open_channel(server.target) as opened:
        yield opened


@pytest.fixture(scope="module")
def emptied_redis(redis_server: EmbeddedRedis) -> EmbeddedRedis:
    """The embedded Redis, without what the tests of other files left in it."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
async def published(redis: RedisClient, tokenizer_folder: Path) -> DeploymentRecord:
    """The tiny model's deployment, which is only said to be there."""
    return await publish_tiny(redis, tokenizer_folder)


@pytest.fixture
def model() -> HashModel:
    """A length model that computes only when it is let."""
    return HashModel("0")


@pytest.fixture
async def profiler(
    redis_server: EmbeddedRedis, published: DeploymentRecord, model: HashModel, tmp_path: Path
) -> AsyncIterator[Running]:
    """A profiler that predicts with it, and lets four prompts wait."""
    settings = {"predictor": "fast", "predictor_adapter": tmp_path, "predictor_queue_limit": 4}
    async with running(redis_server.url, lambda folder, base: model, **settings) as started:
        model.entered()  # the trial
        model.batches.clear()
        yield started
        model.release()


@pytest.fixture
async def bench(redis: RedisClient, tiny_triton: EmbeddedTriton) -> Bench:
    made = Bench(redis, record_of(tiny_triton.address))
    await made.publish()
    return made


@pytest.fixture
def replicas(redis_server: EmbeddedRedis, tmp_path: Path) -> Iterator[list[SchedulerProcess]]:
    made = [SchedulerProcess(redis_server.url, name, tmp_path / f"{name}.log") for name in ("one", "two")]
    yield made
    for replica in made:
        if replica.process is not None and replica.process.poll() is None:
            replica.signal(signal.SIGCONT)
            replica.signal(signal.SIGKILL)
            replica.process.wait(10)


@pytest.fixture
async def scheduler(replicas: list[SchedulerProcess], bench: Bench) -> AsyncIterator[Any]:
    replicas[0].start()
    async with replicas[0].stub() as stub:
        await until(lambda: owner_is(stub, "one"))
        yield stub
