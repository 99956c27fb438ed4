"""What the deployer makes of what the scheduler publishes: on a real Redis; as a process, with a real Triton."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from uellm_deployer.adapters.feedback import RedisFeedback
from uellm_deployer.encoding import record_message

from tests.integration.test_deployer_service import Deployer, published
from tests.support.costs import random_batch, times
from tests.support.deployer import DeployerWorld, gpu, machine
from tests.support.monitoring import MonitorWorld
from tests.support.stack import until
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import start_triton
from uellm.cli.watching import recommended
from uellm.client import AsyncClient, Client, Endpoints
from uellm.cost.fit import CostFit
from uellm.cost.steps import StepTime
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import RedisClient
from uellm.messaging.costs import CostStore
from uellm.messaging.keys import ModelKeys
from uellm.messaging.lease import LeaseKeeper
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.stream_pb2 import Backlog, DeploymentRecord

LIMIT_SECONDS = 60.0
WINDOW_SECONDS = 2.0


async def publish_cost(redis: RedisClient, record: DeploymentRecord, factor: float, batches: int = 30) -> None:
    """As the owner of the queue does, from batches that took so many times as long as the record's prior says."""
    choice, fit = random.Random(1), CostFit(record)
    truth = times(factor, StepTime.from_prior(record.step_time_prior))
    for _ in range(batches):
        fit.fold(random_batch(choice, truth=truth))
    keeper = LeaseKeeper(redis, "an owner")
    lease = await keeper.acquire(record.model)
    assert lease is not None
    await CostStore(redis).publish(record.model, lease.epoch, [fit.to_state()])
    await redis.delete(ModelKeys(record.model).owner)


async def publish_load(redis: RedisClient, model: str, offered: float, waiting: int) -> None:
    """As the owner of a queue does that gets more than its engines do; for ever."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    while True:
        backlog = Backlog(schema_version=1, queued=waiting, running=2)
        backlog.work_p50.FromMilliseconds(round(1000 * (10 + (offered - 1) * (clock() - begin))))
        await redis.set(ModelKeys(model).backlog, backlog.SerializeToString(), px=5_000)
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def loaded(redis: RedisClient, model: str, offered: float, waiting: int) -> AsyncIterator[None]:
    """A load for the while of the block."""
    publishing = asyncio.create_task(publish_load(redis, model, offered, waiting))
    try:
        yield
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        await redis.delete(ModelKeys(model).backlog)


async def test_the_cost_model_in_redis_moves_a_deployment_to_another_gpu(redis: RedisClient, tmp_path: Path):
    """On a described machine of two GPUs; the rest of the deployer is real but for Triton."""
    world = DeployerWorld(tmp_path)
    world.machine.topology = machine(gpu("gpu0"), gpu("gpu1"))
    await world.create("one", dtype="float32")
    watched = MonitorWorld(world, RedisFeedback(redis))
    record = record_message(world.book.deployment("deployments/one"), "")
    await publish_cost(redis, record, 1.1)
    await watched.looks(10)
    assert world.book.recommendations == {}
    await publish_cost(redis, record, 3)
    await watched.looks(10)
    (found,) = world.book.recommendations.values()
    assert set(found.plan.needs) == {"gpu1"}
    (status,) = watched.gauges.deployments
    assert status.performance.ratio == pytest.approx(3, rel=0.1)
    record.plan_hash = "0123456789"
    await publish_cost(redis, record, 3)
    await watched.looks(10)
    assert world.book.recommendations == {}, "what was learnt of another plan is void"


async def test_rubbish_in_redis_is_as_nothing(redis: RedisClient, tmp_path: Path):
    world = DeployerWorld(tmp_path)
    await world.create("one")
    keys = ModelKeys("smol")
    await redis.hset(keys.cost, "deployments/one", b"\xff\xff")
    await redis.set(keys.backlog, b"\xff\xff")
    watched = MonitorWorld(world, RedisFeedback(redis))
    await watched.looks(10)
    (status,) = watched.gauges.deployments
    assert status.performance.measured is None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def metrics_address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def deployer(
    tmp_path_factory: pytest.TempPathFactory, emptied_redis: EmbeddedRedis, metrics_address: str
) -> Iterator[Deployer]:
    folder = tmp_path_factory.mktemp("repository")
    triton = start_triton(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UELLM_METRICS_LISTEN", metrics_address)
        patch.setenv("UELLM_MONITOR_WINDOW_SECONDS", str(WINDOW_SECONDS))
        try:
            with Deployer(folder, triton, emptied_redis.url) as deployer:
                deployer.process.wait_ready(LIMIT_SECONDS)
                yield deployer
        finally:
            triton.stop()


def scrape(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def value(address: str, name: str, **labels: str) -> float | None:
    """Of the one sample with these labels, among others; None: there is none."""
    wanted = set(labels.items())
    found = [one for (key, own), one in scrape(address).items() if key == f"uellm_{name}" and wanted <= own]
    assert len(found) <= 1, found
    return found[0] if found else None


@contextlib.asynccontextmanager
async def command(deployer: Deployer, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`uellm` as a process."""
    env = dict.fromkeys(("UELLM_PROFILER", "UELLM_SCHEDULER", "UELLM_DEPLOYER"), deployer.address)
    pipe = asyncio.subprocess.PIPE
    program = (sys.executable, "-m", "uellm.cli.main", *words)
    process = await asyncio.create_subprocess_exec(*program, env={**os.environ, **env}, stdout=pipe)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def next_recommendation(deployer: Deployer, name: str) -> pb.Alternative:
    async with AsyncClient(Endpoints(*[deployer.address] * 3)) as client:
        async with asyncio.timeout(LIMIT_SECONDS):
            async for update in client.watch_deployment(name):
                if update.HasField("recommendation"):
                    return update.recommendation
    raise AssertionError("the deployment is gone")


def shown_by_status(deployer: Deployer, name: str) -> str:
    with Client(Endpoints(*[deployer.address] * 3)) as client:
        found = recommended(client, name)
    return found.reason if found else ""


async def test_slow_steps_and_load_are_shown_and_what_is_recommended_can_be_done(
    deployer, weights, redis, redis_server, metrics_address
):
    assert not deployer.create("main", weights).HasField("error")
    (record,) = await published(redis_server)
    main = record.name

    async def off_plan(cause: str) -> bool:
        return value(metrics_address, "deployment_off_plan", deployment=main, cause=cause) == 1

    # Slow steps on the only device: nothing can be recommended.
    await publish_cost(redis, record, 3)
    await until(lambda: off_plan("step_time"))
    predicted = value(metrics_address, "deployment_predicted_step_seconds", deployment=main)
    measured = value(metrics_address, "deployment_measured_step_seconds", deployment=main)
    assert measured / predicted == pytest.approx(3, rel=0.1)
    assert value(metrics_address, "deployment_recommendation", deployment=main) == 0
    (line,) = [line for line in deployer.log.read_text().splitlines() if "deployment is off its plan" in line]
    assert "no plan is better by enough" in line
    await redis.delete(ModelKeys("tiny").cost)

    # Load: more rows are, and the very plan is made.
    async with command(deployer, "watch", "main") as watching, loaded(redis, "tiny", offered=1.5, waiting=10):
        recommendation = await next_recommendation(deployer, main)
        assert recommendation.plan.spec.max_batch_rows == 4
        for part in (main, "10 queries wait", "BLUE_GREEN"):
            assert part in recommendation.reason
        await until(lambda: off_plan("load"))
        assert value(metrics_address, "deployment_recommendation", deployment=main) == 1
        assert value(metrics_address, "queue_offered_load_ratio", queue="tiny") == pytest.approx(1.5, abs=0.3)
        assert await asyncio.to_thread(shown_by_status, deployer, main) == recommendation.reason
        request = pb.CreateDeploymentRequest(deployment_id="next", spec=recommendation.plan.spec)
        operation = await asyncio.to_thread(deployer.call, "CreateDeployment", request)
        operation = await asyncio.to_thread(deployer.finish, operation)
        async with asyncio.timeout(LIMIT_SECONDS):
            said, _ = await watching.communicate()
        assert watching.returncode == 0, "what it watched is gone"
    assert "better now: the load has outgrown deployments/main" in said.decode()
    made = pb.Deployment()
    assert operation.response.Unpack(made), operation.error
    assert made.plan.plan_hash == recommendation.plan.plan_hash

    async def replaced() -> bool:
        names = {dict(labels).get("deployment") for _, labels in scrape(metrics_address)}
        return "deployments/next" in names and main not in names

    async def right_again() -> bool:
        return value(metrics_address, "deployment_recommendation", deployment="deployments/next") == 0

    await until(replaced)
    assert value(metrics_address, "deployment_serves", deployment="deployments/next") == 1
    await until(right_again)


async def test_this_machine_is_shown(deployer, metrics_address):
    cpu = {"device": "cpu0", "kind": "cpu"}
    await until(lambda: _is_shown(metrics_address, **cpu))
    total, used, free = (value(metrics_address, f"device_memory_{what}bytes", **cpu) for what in ("", "used_", "free_"))
    assert total == used + free
    assert 0 < used < total
    assert 0 <= value(metrics_address, "device_utilisation_ratio", **cpu) <= 1
    needs = [
        stage.weight_bytes + stage.kv_bytes + stage.reserve_bytes
        for one in deployer.call("ListDeployments", pb.ListDeploymentsRequest()).deployments
        for stage in one.plan.stages
    ]
    assert value(metrics_address, "device_memory_promised_bytes", **cpu) == sum(needs)


async def _is_shown(address: str, **labels: str) -> bool:
    return value(address, "device_memory_bytes", **labels) is not None
