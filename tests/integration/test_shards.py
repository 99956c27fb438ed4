"""A model whose queue is divided: replicas own as many shards each, and take over and hand over under load."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.support.stack import MODEL, Bench, SchedulerProcess, make_submission, record_of, until
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import load, write_static_engine
from uellm.local.triton import EmbeddedTriton
from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import queue_for, queue_of
from uellm.messaging.keys import ModelKeys
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import QUERY_STATE_CANCELLED, QUERY_STATE_COMPLETED
from uellm.v1.stream_pb2 import DeploymentRecord

SHARDS = 2


@pytest.fixture(scope="module")
def engines(tiny_triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedTriton:
    """Two of them, since an engine obeys one owner only."""
    weights = make_tiny_model(tmp_path_factory.mktemp("shards") / "weights")
    write_static_engine(tiny_triton.options.repository, "tiny--1", weights)
    load(tiny_triton, "tiny--1")
    return tiny_triton


@pytest.fixture
async def records(redis: RedisClient, engines: EmbeddedTriton) -> list[DeploymentRecord]:
    """Two deployments, each serving a shard."""
    made = []
    for shard in range(SHARDS):
        record = record_of(engines.address)
        record.name, record.triton_model, record.queue_shard = f"deployments/tiny-{shard}", f"tiny--{shard}", shard
        await Bench(redis, record).publish()
        made.append(record)
    return made


async def owners(replica: SchedulerProcess) -> list[str]:
    """Who owns each shard, as a replica tells."""
    async with replica.stub() as stub:
        queue = await stub.GetQueue(pb.GetQueueRequest(model=MODEL))
    assert [shard.shard for shard in queue.shards] == list(range(SHARDS))
    assert queue.queued == sum(shard.queued for shard in queue.shards)
    return [shard.owner for shard in queue.shards]


async def submit(bench: Bench, records: list[DeploymentRecord], prefix: str, *, tokens: int) -> dict[str, str]:
    """Put queries on the queues that they belong to; returns the name of each one's deployment."""
    for record in records:
        await Bench(bench.redis, record).publish()
    serving = {queue_of(record): record.name for record in records}
    expected = {}
    for number in range(16):
        made = make_submission(f"{prefix}-{number}", tokens=tokens)
        made = replace(made, queue=queue_for(made.name, records))
        await bench.submit(made)
        expected[made.name] = serving[made.queue]
    assert set(expected.values()) == set(serving.values())
    return expected


async def test_shards_are_divided_taken_over_and_handed_over(
    redis: RedisClient, records: list[DeploymentRecord], replicas: list[SchedulerProcess]
):
    bench, (one, two) = Bench(redis, records[0]), replicas
    expected: dict[str, str] = {}
    one.start()
    await until(lambda: _are(one, {"one"}))
    expected |= await submit(bench, records, "first", tokens=60)
    two.start()
    await until(lambda: _are(two, {"one", "two"}))
    expected |= await submit(bench, records, "second", tokens=60)
    one.signal(signal.SIGKILL)
    await until(lambda: _are(two, {"two"}))
    expected |= await submit(bench, records, "third", tokens=60)
    assert one.process is not None
    one.process.wait(10)
    one.start()
    await until(lambda: _are(two, {"one", "two"}))
    await until(lambda: bench.all_finished(list(expected)))
    outcomes = await bench.check(list(expected))
    assert {outcome.state for outcome in outcomes} == {QUERY_STATE_COMPLETED}
    assert [outcome.deployment for outcome in outcomes] == list(expected.values())
    for shard in range(SHARDS):
        assert await redis.xlen(ModelKeys(MODEL, shard).queue) == 0
        assert int(await redis.get(ModelKeys(MODEL, shard).depth)) == 0


@pytest.fixture
async def scheduler(replicas: list[SchedulerProcess], records: list[DeploymentRecord]) -> SchedulerProcess:
    replicas[0].start()
    await until(lambda: _are(replicas[0], {"one"}))
    return replicas[0]


async def test_a_query_of_any_shard_is_cancelled_explained_and_served_by_the_chosen_policy(
    redis: RedisClient, records: list[DeploymentRecord], scheduler: SchedulerProcess
):
    bench = Bench(redis, records[0])
    async with scheduler.stub() as stub:
        answer = await stub.SetPolicy(pb.SetPolicyRequest(model=MODEL, policy="edf"))
        assert answer.previous_policy == "fifo"
        expected = await submit(bench, records, "long", tokens=300)
        for name in expected:
            await stub.CancelQuery(pb.CancelQueryRequest(name=name))
        await until(lambda: bench.all_finished(list(expected)))
        outcomes = await bench.check(list(expected))
        assert QUERY_STATE_CANCELLED in {outcome.state for outcome in outcomes}
        served = await submit(bench, records, "short", tokens=3)
        await until(lambda: bench.all_finished(list(served)))
        for name in served:
            [decision] = (await stub.ExplainQuery(pb.ExplainQueryRequest(name=name))).decisions
            assert decision.policy == "edf"
        for shard, record in enumerate(records):
            request = pb.ReadDecisionsRequest(model=MODEL, shard=shard)
            batches = [batch async for entry in stub.ReadDecisions(request) for batch in entry.decision.batches]
            assert {batch.deployment for batch in batches} == {record.name}


async def _are(replica: SchedulerProcess, wanted: set[str]) -> bool:
    return set(await owners(replica)) == wanted
