"""The calibration on a real Redis: one writer, nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import REGISTRY
from uellm_profiler.__main__ import serve_profiler
from uellm_profiler.adapters.calibration import CalibrationDirectory, RedisCalibrationStore
from uellm_profiler.adapters.calibration_codec import decode_observation
from uellm_profiler.app.calibration import PAGE, Calibrator, LostLeaseError
from uellm_profiler.config import ProfilerSettings
from uellm_profiler.domain.calibration import CalibrationState, fold, skip
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.domain.prior import StatisticalPrior

from tests.support.stack import until
from tests.support.tiny_model import make_tokenizer
from uellm.cost.lengths import LengthDistribution
from uellm.cost.steps import StepTime
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import DeploymentPublisher
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper, calibration_lease
from uellm.v1 import profiler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import GenerationParameters, Query, ResourceProfile
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
    Observation,
)

MODEL = "tiny"
KEYS = ModelKeys(MODEL)
PREDICTOR = f"{StatisticalPrior.kind}/{StatisticalPrior.version}"
LIMIT = 128
ROOT = Path(__file__).resolve().parents[2]


async def prior() -> LengthDistribution:
    prompt = PredictorInput(MODEL, "x", 1, GenerationParameters(), LIMIT)
    return (await StatisticalPrior().predict([prompt])).lengths[0]


async def observe(redis: RedisClient, rows: int, seed: int = 0) -> None:
    """Append observations as the scheduler's script does: short answers, which the prior does not expect."""
    generator, length = random.Random(seed), (await prior()).to_proto()
    profile = ResourceProfile(output_length=length, predictor_version=PREDICTOR)
    async with redis.pipeline(transaction=False) as pipeline:
        for _ in range(rows):
            tokens = min(LIMIT, round(generator.lognormvariate(3.2, 0.6)) + 1)
            one = Observation(schema_version=1, output_tokens=tokens, censored=tokens == LIMIT)
            pipeline.xadd(KEYS.observations, {"o": one.SerializeToString(), "p": profile.SerializeToString()})
        await pipeline.execute()


async def folded(redis: RedisClient) -> CalibrationState:
    """The fold of the whole stream, made here."""
    state = CalibrationState()
    for entry_id, fields in await redis.xrange(KEYS.observations):
        observed = decode_observation(entry_id.decode(), fields)
        state = skip(state, entry_id.decode()) if observed is None else fold(state, observed)
    return state


async def applied(redis: RedisClient) -> int:
    """Observations in the stored state."""
    state = await RedisCalibrationStore(redis).load(MODEL)
    return sum(one.observations for one in state.predictors)


async def all_applied(redis: RedisClient) -> bool:
    last = await redis.hget(KEYS.calibration, "last")
    return bool(last == (await redis.xrevrange(KEYS.observations, count=1))[0][0])


def leases(redis: RedisClient, replica: str, milliseconds: int = 60_000) -> LeaseKeeper:
    return LeaseKeeper(redis, replica, milliseconds, calibration_lease)


def calibrator(redis: RedisClient, replica: str = "a", milliseconds: int = 60_000) -> Calibrator:
    return Calibrator(RedisCalibrationStore(redis), leases(redis, replica, milliseconds), lambda: [MODEL])


async def test_a_stream_is_folded_by_one_of_two(redis: RedisClient) -> None:
    await observe(redis, PAGE + 50)
    one, other = calibrator(redis, "a"), calibrator(redis, "b")
    assert await one.step()
    assert not await other.step()
    assert await applied(redis) == PAGE
    assert not await one.step()
    await observe(redis, 3, seed=1)
    assert not await one.step()
    assert await RedisCalibrationStore(redis).load(MODEL) == await folded(redis)


async def test_a_writer_that_was_paused_is_fenced(redis: RedisClient) -> None:
    await observe(redis, 40)
    store = RedisCalibrationStore(redis)
    first = await leases(redis, "a").acquire(MODEL)
    assert first is not None
    known = await store.load(MODEL)
    await leases(redis, "a").release(first)  # the lease ran out while it was paused
    assert not await calibrator(redis, "b").step()
    newer = await store.load(MODEL)
    stale = skip(known, newer.last_entry_id)
    with pytest.raises(LostLeaseError):
        await store.save(MODEL, first.epoch, known, stale)
    with pytest.raises(LostLeaseError):
        await store.save(MODEL, first.epoch, newer, skip(newer, "99-0"))
    assert await store.load(MODEL) == newer == await folded(redis)


async def test_a_revived_writer_stops_and_the_other_goes_on(redis: RedisClient) -> None:
    await observe(redis, 2 * PAGE)
    paused, other = calibrator(redis, "a"), calibrator(redis, "b")
    assert await paused.step()
    await redis.delete(KEYS.calibrator)  # what happens when the lease runs out
    assert await other.step()
    assert not await paused.step()
    assert not await other.step()
    assert (await leases(redis, "a").holder(MODEL))[0] == "b"
    assert await RedisCalibrationStore(redis).load(MODEL) == await folded(redis)


async def test_a_write_that_does_not_go_on_from_what_is_there_is_not_made(redis: RedisClient) -> None:
    await observe(redis, 10)
    store, writer = RedisCalibrationStore(redis), calibrator(redis)
    await writer.step()
    epoch = (await leases(redis, "a").holder(MODEL))[1]
    state = await store.load(MODEL)
    assert not await store.save(MODEL, epoch, CalibrationState(), skip(CalibrationState(), "1-0"))
    assert await store.load(MODEL) == state
    # Redis came back with an older state: what is missing is folded again, into that one.
    await redis.delete(KEYS.calibration)
    await observe(redis, 5, seed=1)
    assert await writer.step()
    assert not await writer.step()
    assert await store.load(MODEL) == await folded(redis)


async def test_a_gap_and_what_cannot_be_read_are_counted(redis: RedisClient) -> None:
    await observe(redis, 30)
    writer = calibrator(redis)
    await writer.step()
    assert (await RedisCalibrationStore(redis).load(MODEL)).gaps == 0
    await observe(redis, 20, seed=1)
    await redis.xtrim(KEYS.observations, maxlen=10, approximate=False)
    await redis.xadd(KEYS.observations, {"o": b"\xff"})
    await writer.step()
    state = await RedisCalibrationStore(redis).load(MODEL)
    assert (state.gaps, state.unreadable) == (1, 1)
    assert state.predictors[0].observations == 40
    await observe(redis, 1, seed=2)
    await writer.step()
    assert (await RedisCalibrationStore(redis).load(MODEL)).gaps == 1


async def test_a_state_that_cannot_be_read_begins_anew_behind_its_last_entry(redis: RedisClient) -> None:
    await observe(redis, 30)
    writer = calibrator(redis)
    await writer.step()
    await redis.hset(KEYS.calibration, "state", b"\xff")
    await observe(redis, 7, seed=1)
    directory = CalibrationDirectory(redis, lambda: [MODEL], lambda _: None)
    await directory.refresh()
    assert directory.get(MODEL, PREDICTOR) is None
    fresh = calibrator(redis, "a2")
    await redis.delete(KEYS.calibrator)
    await fresh.step()
    assert await applied(redis) == 7


async def test_replicas_follow_and_forget(redis: RedisClient) -> None:
    models = [MODEL]
    directory = CalibrationDirectory(redis, lambda: models, lambda _: None, interval_seconds=0.05)
    async with directory.following():
        assert directory.get(MODEL, PREDICTOR) is None
        await observe(redis, 60)
        await calibrator(redis).step()
        await until(_async(lambda: directory.get(MODEL, PREDICTOR) is not None), 10)
        await observe(redis, 1)
        newest = (await redis.xrevrange(KEYS.observations, count=1))[0][0].decode()
        await calibrator(redis).step()  # somebody else's lease: nothing happens
        behind = int(newest.split("-")[0]) - int(directory.states[MODEL].last_entry_id.split("-")[0])
        await until(_async(lambda: directory.lag_seconds(MODEL) == behind / 1000), 10)
        assert directory.describe(MODEL, PREDICTOR).observations == 60
        models.clear()
        await until(_async(lambda: directory.get(MODEL, PREDICTOR) is None), 10)


def _async(condition: Callable[[], Any]) -> Callable[[], Any]:
    async def check() -> bool:
        return bool(condition())

    return check


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
async def deployed(redis: RedisClient, tokenizer_folder: Path) -> AsyncIterator[None]:
    """A deployment that is published as long as the test runs."""
    clock = RedisClock(redis)
    await clock.synchronise()
    record = DeploymentRecord(
        name="deployments/tiny",
        model=MODEL,
        state=DEPLOYMENT_STATE_READY,
        facts=ModelFacts(context_limit_tokens=512, kv_bytes_per_token=512, vocabulary_size=264),
        limits=EngineLimits(context_tokens=512, max_output_tokens=LIMIT),
        tokenizer_path=str(tokenizer_folder),
        step_time_prior=StepTime(0.01, 0.001, 0, 0.0001, 0.02).to_prior("measured"),
        traffic_share=1,
    )
    publisher = DeploymentPublisher(redis, clock)
    await publisher.publish(record)

    async def again() -> None:
        while True:
            await asyncio.sleep(5)
            await publisher.publish(record)

    task = asyncio.create_task(again())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_profiles_are_calibrated_and_say_so(
    redis: RedisClient, redis_server: EmbeddedRedis, deployed: None
) -> None:
    settings = ProfilerSettings(
        listen="127.0.0.1:0", redis_url=redis_server.url, shutdown_grace_seconds=1, predictor="prior"
    )
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve_profiler(settings, on_started=started.set_result, stop=stop))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await asyncio.wait_for(started, 30)}") as channel:
            stub: Any = ProfilerServiceStub(channel)
            request = pb.ProfileRequest(parent=f"tenants/t/models/{MODEL}", query=Query(prompt="hi"))
            before = (await stub.Profile(request)).profile
            assert (before.calibration_version, list(before.uncalibrated_probabilities)) == ("", [])
            await observe(redis, 600)
            newest = (await redis.xrevrange(KEYS.observations, count=1))[0][0].decode()

            async def calibrated() -> bool:
                return bool((await stub.Profile(request)).profile.calibration_version == newest)

            await until(calibrated, 30)
            after = (await stub.Profile(request)).profile
            assert after.output_length.p50_tokens == pytest.approx(25, rel=0.2)
            assert before.output_length.p50_tokens == LIMIT
            *raw, cut = after.uncalibrated_probabilities
            assert raw == pytest.approx(list(before.output_length.bucket_probabilities), abs=1e-6)
            assert cut == pytest.approx(before.output_length.limit_probability, abs=1e-6)
            (described,) = (await stub.DescribePredictor(pb.DescribePredictorRequest(model=MODEL))).calibrations
    finally:
        stop.set()
        await asyncio.wait_for(task, 30)
    state = (await RedisCalibrationStore(redis).load(MODEL)).predictors[0]
    assert (described.version, described.observations) == (newest, 600)
    assert described.scored_answers == len(state.quality.within) == 500
    assert described.coverage_p90 == sum(flags & 4 > 0 for flags in state.quality.within) / 500
    assert described.cut_share == pytest.approx(state.quality.cut_share)
    labels = {"model": MODEL, "predictor": PREDICTOR}
    for name in ("coverage_p90", "coverage_p99", "pinball_loss_tokens", "observations", "drift_statistic", "drifts"):
        shown = REGISTRY.get_sample_value(f"uellm_profiler_calibration_{name}", labels)
        assert shown == getattr(described, name)
    assert REGISTRY.get_sample_value("uellm_profiler_calibration_lag_seconds", {"model": MODEL}) == 0
    assert await redis.get(KEYS.calibrator) is None  # given up


@dataclass
class ProfilerProcess:
    """`python -m uellm_profiler` as a process of its own."""

    redis_url: str
    replica: str
    log: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "uellm_profiler", "--listen", f"127.0.0.1:{self.port}", "--predictor", "prior"]
        argv += ["--redis-url", self.redis_url, "--replica", self.replica, "--calibration-lease-seconds", "1"]
        path = os.pathsep.join([str(ROOT), str(ROOT / "services" / "profiler")])
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, "PYTHONPATH": path})

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def describe(self) -> pb.ModelCalibration:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 60)
            stub: Any = ProfilerServiceStub(channel)
            (found,) = (await stub.DescribePredictor(pb.DescribePredictorRequest(model=MODEL))).calibrations
            return found


@pytest.fixture
def replicas(redis_server: EmbeddedRedis, scratch: Path) -> Iterator[Sequence[ProfilerProcess]]:
    made = [ProfilerProcess(redis_server.url, name, scratch / f"{name}.log") for name in ("a", "b", "c")]
    yield made
    for one in made:
        if one.process is not None:
            one.process.kill()
            one.process.wait(30)


async def _signal_mid_fold(redis: RedisClient, replicas: Sequence[ProfilerProcess], number: int, seed: int) -> str:
    """Append observations and send the writer a signal while it folds them; returns its name."""
    before = await applied(redis)
    await observe(redis, 12 * PAGE, seed)

    async def begun() -> bool:
        return await applied(redis) > before

    await until(begun)
    holder, _ = await leases(redis, "test").holder(MODEL)
    next(one for one in replicas if one.replica == holder).signal(number)
    assert not await all_applied(redis), "the signal came too late to test anything"
    return holder


async def test_what_a_killed_or_paused_replica_learnt_is_found_and_nothing_counts_twice(
    redis: RedisClient, deployed: None, replicas: Sequence[ProfilerProcess]
) -> None:
    for one in replicas:
        one.start()
    await asyncio.gather(*(one.describe() for one in replicas))

    async def everything() -> bool:
        return await all_applied(redis)

    paused = await _signal_mid_fold(redis, replicas, signal.SIGSTOP, seed=1)
    await until(everything)
    next(one for one in replicas if one.replica == paused).signal(signal.SIGCONT)
    killed = await _signal_mid_fold(redis, replicas, signal.SIGKILL, seed=2)
    await until(everything)
    assert paused != killed
    expected = await folded(redis)
    assert await RedisCalibrationStore(redis).load(MODEL) == expected
    assert expected.predictors[0].observations == 24 * PAGE
    survivors = [one for one in replicas if one.replica != killed]

    async def all_know() -> bool:
        described = [await one.describe() for one in survivors]
        return {(one.version, one.observations) for one in described} == {(expected.last_entry_id, 24 * PAGE)}

    await until(all_know)
