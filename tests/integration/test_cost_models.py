"""Cost models on a real Redis, fitted to what a real Triton reports."""

from __future__ import annotations

import asyncio
import random
import signal
import urllib.request
from pathlib import Path

import pytest

from tests.support.costs import PRIOR, TRUTH, measured_deployment, random_batch, times
from tests.support.profiler import publish_tiny, running
from tests.support.stack import MODEL, Bench, SchedulerProcess, make_submission, owner_is, record_of, until
from tests.support.tiny_model import make_tokenizer
from uellm.cost.fit import CostFit
from uellm.cost.model import CostModel
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import EmbeddedTriton
from uellm.messaging.connection import RedisClient
from uellm.messaging.costs import MOST_DEPLOYMENTS, CostDirectory, CostStore
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import FencedError
from uellm.v1 import profiler_pb2
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import GenerationParameters, Query
from uellm.v1.stream_pb2 import CostModelState, Observation

KEYS = ModelKeys(MODEL)


def learnt(batches: int = 10, name: str = "deployments/a", plan: str = "plan-1") -> CostFit:
    choice, fit = random.Random(1), CostFit(measured_deployment(PRIOR, name=name, plan=plan))
    for number in range(batches):
        fit.fold(random_batch(choice), f"b-{number}")
    return fit


async def test_only_the_owner_writes_and_anybody_reads(redis: RedisClient):
    store = CostStore(redis)
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    fit = learnt()
    await store.publish(MODEL, lease.epoch, [fit.to_state()])
    [state] = await store.read(MODEL)
    assert state == fit.to_state()
    assert await redis.pttl(KEYS.cost) > 29 * 24 * 3_600_000
    await redis.delete(KEYS.owner)
    successor = await LeaseKeeper(redis, "two").acquire(MODEL)
    assert successor is not None
    with pytest.raises(FencedError):
        await store.publish(MODEL, lease.epoch, [learnt(20).to_state()])
    assert await store.read(MODEL) == [state]
    await store.publish(MODEL, successor.epoch, [learnt(2, "deployments/b").to_state()])
    assert {one.deployment for one in await store.read(MODEL)} == {"deployments/a", "deployments/b"}


async def test_the_hash_is_bounded_and_rubbish_in_it_is_passed_over(redis: RedisClient):
    store = CostStore(redis)
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    await redis.hset(KEYS.cost, "deployments/bad", b"\xff\xff\xff")
    assert await store.read(MODEL) == []
    await redis.hset(KEYS.cost, mapping={f"deployments/{n}": b"" for n in range(MOST_DEPLOYMENTS)})
    await store.publish(MODEL, lease.epoch, [learnt(1).to_state()])
    assert [state.deployment for state in await store.read(MODEL)] == ["deployments/a"]


async def test_a_follower_has_what_is_published_of_the_plan_that_it_asks_for(redis: RedisClient):
    record = measured_deployment(PRIOR)
    lease = await LeaseKeeper(redis, "one").acquire(MODEL)
    assert lease is not None
    async with CostDirectory(redis, lambda: [MODEL], interval_seconds=0.02).following() as directory:
        assert directory.of(record).version == "prior/roofline"
        fit = learnt()
        await CostStore(redis).publish(MODEL, lease.epoch, [fit.to_state()])

        async def is_fitted() -> bool:
            return directory.of(record).version == "fit/10"

        await until(is_fitted, 10)
        assert directory.of(record) == fit.model
        assert directory.of(record) is directory.of(record), "read once"
        assert directory.of(measured_deployment(PRIOR, plan="plan-2")).version == "prior/roofline"
        await redis.delete(KEYS.cost)

        async def is_prior() -> bool:
            return directory.of(record).version == "prior/roofline"

        await until(is_prior, 10)


async def test_the_owner_learns_publishes_and_goes_on_after_kill_take_over_and_plan_change(
    redis: RedisClient, redis_server: EmbeddedRedis, tiny_triton: EmbeddedTriton, replicas: list[SchedulerProcess]
):
    record = record_of(tiny_triton.address)
    record.plan_hash = "plan-1"
    # A prior of three seconds a step, which the first batch of a tiny model corrects however loaded the machine is.
    record.step_time_prior.CopyFrom(times(100, PRIOR).to_prior("roofline"))
    bench, store = Bench(redis, record), CostStore(redis)
    await bench.publish()

    async def state_after(queries: list[str], observations: int) -> CostModelState:
        await bench.submit(*(make_submission(name, tokens=20 + 10 * at) for at, name in enumerate(queries)))

        async def published() -> bool:
            return any(
                (state.plan_hash, state.observations) == (record.plan_hash, observations)
                for state in await store.read(MODEL)
            )

        await until(published)
        [state] = await store.read(MODEL)
        return state

    metrics_port = free_port()
    replicas[0].start("--metrics-listen", f"127.0.0.1:{metrics_port}")
    async with replicas[0].stub() as stub:
        await until(lambda: owner_is(stub, "one"))
        first = await state_after(["a0"], 1)
        assert first.deployment == record.name
        assert first.step_time.base_seconds + first.step_time.per_row_seconds < 1.0
        second = await state_after(["b0"], 2)
        queue = await stub.GetQueue(pb.GetQueueRequest(model=MODEL))
        [status] = queue.cost_models
        assert (status.deployment, status.version, status.observations) == (record.name, "fit/2", 2)
        assert status.step_time == second.step_time
        assert status.standard_deviation.base_seconds > 0
        assert status.relative_error == second.relative_error
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics").read())
    assert f'uellm_cost_model_observations{{deployment="{record.name}",model="{MODEL}"}} 2.0'.encode() in page
    assert b"uellm_cost_model_relative_error" in page

    replicas[0].signal(signal.SIGKILL)
    assert replicas[0].process is not None
    replicas[0].process.wait(10)
    replicas[1].start()
    async with replicas[1].stub() as stub:
        await until(lambda: owner_is(stub, "two"))
        third = await state_after(["c0"], 3)
        assert third.last_batch_id != second.last_batch_id
        observed = [Observation.FromString(fields[b"o"]) for _, fields in await redis.xrange(KEYS.observations)]
        assert sum(one.HasField("step_aggregates") for one in observed) == 3, "one observation a batch has its cost"
        again = CostFit(record)
        for one in observed:
            if one.HasField("step_aggregates"):
                again.fold(one.step_aggregates)
        assert again.model.step_time == CostModel.from_state(third).step_time, "the observations say the same"

        record.plan_hash = "plan-2"
        await bench.publish()

        async def is_known() -> bool:
            return not (await stub.GetQueue(pb.GetQueueRequest(model=MODEL))).cost_models

        await until(is_known)
        assert (await state_after(["d0"], 1)).plan_hash == "plan-2"
    assert replicas[1].end() == 0


async def test_the_profiler_follows_the_fit(redis: RedisClient, redis_server: EmbeddedRedis, tmp_path: Path):
    make_tokenizer().save_pretrained(tmp_path)
    record = await publish_tiny(redis, tmp_path)
    lease = await LeaseKeeper(redis, "one").acquire(record.model)
    assert lease is not None
    asked = profiler_pb2.ProfileRequest(
        parent=f"tenants/acme/models/{record.model}",
        query=Query(prompt="hello", generation=GenerationParameters(max_output_tokens=50)),
    )
    async with running(redis_server.url) as profiler:
        prior = (await profiler.stub.Profile(asked)).profile
        assert (prior.cost_model_version, prior.HasField("cost_model_error")) == ("prior/measured", False)
        fit = learnt(20, record.name, record.plan_hash)
        await CostStore(redis).publish(record.model, lease.epoch, [fit.to_state()])

        async def follows() -> bool:
            profile = (await profiler.stub.Profile(asked)).profile
            return bool(profile.cost_model_version == "fit/20")

        await until(follows, 20)
        found = (await profiler.stub.Profile(asked)).profile
        assert found.cost_model_error == pytest.approx(fit.model.relative_error)
        assert found.service_time_p50.ToNanoseconds() > 4 * prior.service_time_p50.ToNanoseconds()
        expected = TRUTH.alone_seconds(found.prompt_tokens, found.output_length.p50_tokens)
        assert found.service_time_p50.ToNanoseconds() / 1e9 == pytest.approx(expected, rel=0.1)
        assert found.cost_model_interval < prior.cost_model_interval
