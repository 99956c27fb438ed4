"""The deployer as a process against a real Triton and a real Redis, with a tiny random model."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import psutil
import pytest
from google.longrunning.operations_pb2 import Operation
from grpc_health.v1 import health_pb2, health_pb2_grpc
from uellm_deployer.adapters.triton_control import ControlTimes, TritonControl

from tests.support.tiny_model import make_tiny_model
from tests.support.triton import StaticEngineClient, start_triton, state, write_static_engine
from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import connect
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.keys import DEPLOYMENTS
from uellm.rpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from uellm.rpc.status import from_rpc_error, from_status
from uellm.v1 import deployer_pb2 as pb
from uellm.v1 import stream_pb2
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub

T = TypeVar("T")
LIMIT_SECONDS = 60.0
IDLE_MEGABYTES = 150


def wait_for(condition: Callable[[], T | None]) -> T:
    end = time.monotonic() + LIMIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return value


def stubs(triton: EmbeddedTriton) -> list[psutil.Process]:
    """The processes that models run in."""
    return [one for one in psutil.Process(triton.process.pid).children() if "backend_stub" in one.name()]


class Deployer:
    """The service as a process."""

    def __init__(self, root: Path, triton: EmbeddedTriton, redis_url: str, secret: str = "") -> None:
        self.root, self.triton = root, triton
        self.address = f"127.0.0.1:{free_port()}"
        settings = {
            "listen": self.address,
            "redis-url": redis_url,
            "repository": str(root),
            "triton-endpoint": triton.address,
            "triton-control-key": CONTROL_KEY,
        }
        self.log = root.parent / f"deployer-{self.address.rpartition(':')[2]}.log"
        self.process = ManagedProcess(
            "deployer",
            [sys.executable, "-m", "uellm_deployer", *(w for k, v in settings.items() for w in (f"--{k}", v))],
            log=self.log,
            ready=self.serving,
            env={**os.environ, "UELLM_TRITON_CONTROL_SECRET": secret or triton.options.control_secret},
        )
        self._channel = grpc.insecure_channel(self.address)
        self.stub = DeployerServiceStub(self._channel)

    def __enter__(self) -> Deployer:
        self.process.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._channel.close()
        self.process.stop()

    def serving(self) -> bool:
        try:
            check = health_pb2_grpc.HealthStub(self._channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(check.status == health_pb2.HealthCheckResponse.SERVING)

    def call(self, method: str, request: object) -> object:
        try:
            return getattr(self.stub, method)(request, timeout=LIMIT_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def finish(self, operation: Operation) -> Operation:
        def done() -> Operation | None:
            now = self.stub.GetOperation(pb.GetOperationRequest(name=operation.name))
            return now if now.done else None

        return wait_for(done)

    def create(self, deployment_id: str, weights: Path, model: str = "tiny", **request: object) -> Operation:
        spec = pb.DeploymentSpec(model=model, weights_path=str(weights), max_batch_rows=2)
        create = pb.CreateDeploymentRequest(deployment_id=deployment_id, spec=spec, **request)
        return self.finish(self.call("CreateDeployment", create))

    def delete(self, deployment_id: str) -> Operation:
        request = pb.DeleteDeploymentRequest(name=f"deployments/{deployment_id}")
        return self.finish(self.call("DeleteDeployment", request))

    def files(self) -> set[str]:
        return {path.name for folder in ("models", "staging") for path in (self.root / folder).iterdir()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    server = start_triton(tmp_path_factory.mktemp("repository"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def deployer(triton: EmbeddedTriton, emptied_redis: EmbeddedRedis) -> Iterator[Deployer]:
    with Deployer(triton.options.repository.parent, triton, emptied_redis.url) as deployer:
        deployer.process.wait_ready(LIMIT_SECONDS)
        yield deployer


async def published(redis_server: EmbeddedRedis, model: str = "tiny") -> list[stream_pb2.DeploymentRecord]:
    redis = connect(redis_server.url)
    try:
        clock = RedisClock(redis)
        await clock.synchronise()
        directory = DeploymentDirectory(redis, clock)
        await directory.refresh()
        return directory.of_model(model)
    finally:
        await redis.aclose()


async def test_a_deployment_from_plan_to_nothing(deployer, weights, redis_server):
    request_id = str(uuid.uuid4())
    operation = deployer.create("one", weights, request_id=request_id)
    deployment = pb.Deployment()
    assert operation.response.Unpack(deployment), operation.error

    assert deployment.state == stream_pb2.DEPLOYMENT_STATE_READY
    assert deployment.measured_kv_bytes_per_token == deployment.plan.facts.kv_bytes_per_token == 512
    assert deployment.record.step_time_prior.source.endswith("base measured")
    name = f"tiny--{deployment.plan.plan_hash}"
    (record,) = await published(redis_server)
    assert record.triton_model == name
    record.ClearField("publish_time")
    assert record == deployment.record

    engine = StaticEngineClient(deployer.triton, record.triton_model)
    answer = engine.run({"r": {"prompt": "Hello", "max_tokens": 5, "ignore_eos": True}})
    assert len(answer.rows["r"].tokens) == 5

    assert deployer.create("one", weights, request_id=request_id).name == operation.name
    with pytest.raises(AlreadyExistsError, match="another request"):
        deployer.create("two", weights, request_id=request_id)
    with pytest.raises(AlreadyExistsError, match="deployments/one"):
        deployer.create("two", weights)

    assert [d.name for d in deployer.stub.ListDeployments(pb.ListDeploymentsRequest()).deployments] == [
        "deployments/one"
    ]
    watching = deployer.stub.WatchDeployment(pb.WatchDeploymentRequest(name="deployments/one"), timeout=LIMIT_SECONDS)
    assert next(watching).progress.percent == 100
    assert not deployer.delete("one").HasField("error")
    stages = [news.progress.stage for news in watching]  # it ends with the deployment
    assert stages[-2:] == [pb.DEPLOYMENT_STAGE_DRAIN, pb.DEPLOYMENT_STAGE_UNLOAD]
    assert deployer.files() == set()
    assert state(deployer.triton, name) in ("", "UNAVAILABLE")
    assert await published(redis_server) == []
    with pytest.raises(NotFoundError):
        deployer.call("GetDeployment", pb.GetDeploymentRequest(name="deployments/one"))


async def test_weights_that_do_not_load_are_rolled_back_with_the_reason(deployer, weights, redis_server, tmp_path):
    """The headers are sound, so the plan is; the tokenizer is missing, which Triton finds out."""
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    for file in broken.glob("token*"):
        file.unlink()
    before = deployer.files()
    operation = deployer.create("broken", broken)
    assert operation.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert "could not load tiny--" in operation.error.message
    assert "tokenizer" in operation.error.message.lower()
    progress = pb.DeploymentProgress()
    operation.metadata.Unpack(progress)
    assert progress.stage == pb.DEPLOYMENT_STAGE_ROLL_BACK
    deployment = deployer.stub.GetDeployment(pb.GetDeploymentRequest(name="deployments/broken")).deployment
    assert deployment.state == stream_pb2.DEPLOYMENT_STATE_FAILED
    assert deployment.failure.startswith("LOAD: ")
    assert deployer.files() == before
    assert await published(redis_server) == []
    deployer.delete("broken")


def test_vllm_that_is_not_there_says_what_to_run(deployer, weights):
    spec = pb.DeploymentSpec(model="tiny", weights_path=str(weights), backend="vllm")
    create = pb.CreateDeploymentRequest(deployment_id="vllm", spec=spec)
    operation = deployer.finish(deployer.call("CreateDeployment", create))
    error = from_status(operation.error)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "ENGINE_NOT_INSTALLED"
    assert "`make vllm-env`" in error.message
    assert "\n" not in error.message
    deployer.delete("vllm")


def test_planning_changes_nothing(deployer, weights):
    topology = deployer.stub.GetTopology(pb.GetTopologyRequest()).topology
    assert "cpu0" in [device.id for device in topology.devices]
    spec = pb.DeploymentSpec(model="tiny", weights_path=str(weights))
    plan = deployer.stub.PlanDeployment(pb.PlanDeploymentRequest(spec=spec)).plan
    assert plan.facts.parameter_count == 95_552
    small = pb.Topology(devices=[pb.Device(id="cpu0", kind="cpu", memory_bytes=1000, free_memory_bytes=1000)])
    with pytest.raises(ResourceExhaustedError, match="1,000 free"):
        deployer.call("PlanDeployment", pb.PlanDeploymentRequest(spec=spec, topology=small))
    validated = deployer.call("CreateDeployment", pb.CreateDeploymentRequest(spec=spec, validate_only=True))
    assert validated.done
    assert not validated.name
    assert deployer.files() == set()


def test_a_fleet_is_deployed_as_it_was_planned(deployer, weights):
    """Two models on one CPU: the second finds its place although the first is there by then."""
    specs = [pb.DeploymentSpec(model=name, weights_path=str(weights), max_batch_rows=2) for name in ("left", "right")]
    request = pb.PlanFleetRequest(members=[pb.FleetMember(spec=spec) for spec in specs])
    fleet = deployer.call("PlanFleet", request)
    assert [plan.spec.model for plan in fleet.plans] == ["left", "right"]
    assert 0 < fleet.tokens_per_second <= fleet.tokens_per_second_bound * 1.0001
    assert deployer.files() == set()
    left, right = (pb.CreateDeploymentRequest(deployment_id=one.spec.model, spec=one.spec) for one in fleet.plans)
    right.validate_only = True  # as it would be created beside the first
    created = deployer.finish(deployer.call("CreateDeployment", left)), deployer.call("CreateDeployment", right)
    for operation, plan in zip(created, fleet.plans, strict=True):
        deployment = pb.Deployment()
        assert operation.response.Unpack(deployment), operation.error
        assert deployment.plan.plan_hash == plan.plan_hash
        assert list(deployment.plan.stages) == list(plan.stages)
    deployer.delete("left")


def test_requests_are_checked(deployer, weights, tmp_path):
    wrong = pb.CreateDeploymentRequest(spec=pb.DeploymentSpec(model="tiny", weights_path=str(tmp_path)))
    with pytest.raises(InvalidArgumentError, match=r"config\.json"):
        deployer.call("CreateDeployment", wrong)
    with pytest.raises(InvalidArgumentError, match="name"):
        deployer.call("GetDeployment", pb.GetDeploymentRequest(name="deployments/../x"))
    with pytest.raises(NotFoundError):
        deployer.call("GetOperation", pb.GetOperationRequest(name="operations/none"))
    with pytest.raises(InvalidArgumentError, match="members"):
        deployer.call("PlanFleet", pb.PlanFleetRequest())


async def test_model_control_is_refused_without_the_secret(triton):
    async with grpc.aio.insecure_channel(triton.address) as channel:
        for key, secret in ((CONTROL_KEY, "wrong"), ("other", "x"), ("", "")):
            stranger = TritonControl(channel, key, secret, ControlTimes())
            for attempt in (stranger.ready_models(), stranger.load("x--0123456789"), stranger.unload("x--0123456789")):
                with pytest.raises(PermissionDeniedError, match="triton-control-secret"):
                    await attempt
        known = TritonControl(channel, CONTROL_KEY, triton.options.control_secret, ControlTimes())
        with pytest.raises(FailedPreconditionError, match="x--0123456789"):
            await known.load("x--0123456789")


async def test_a_load_outlives_its_call(triton, weights):
    """The call's deadline says nothing of the load: the index does."""
    name = "hasty--0123456789"
    write_static_engine(triton.options.repository, name, weights)
    async with grpc.aio.insecure_channel(triton.address) as channel:
        hasty = TritonControl(channel, CONTROL_KEY, triton.options.control_secret, ControlTimes(load_call=0.05))
        await hasty.load(name)
        assert name in await hasty.ready_models()
        with pytest.raises(FailedPreconditionError, match="plan hash"):
            await hasty.verify(name, "0123456789")
        await hasty.unload(name)
        await hasty.unload(name)
        assert name not in await hasty.ready_models()
    shutil.rmtree(triton.options.repository / name)


async def test_restarts_of_deployer_triton_and_redis(tmp_path, weights, redis_server):
    """What was READY serves again and is published again, whoever went away."""
    triton = start_triton(tmp_path / "root")
    redis = EmbeddedRedis(tmp_path / "redis", free_port())
    redis.start()
    redis.wait_ready()
    client = connect(redis.url)
    try:
        with Deployer(tmp_path / "root", triton, redis.url) as first:
            first.process.wait_ready(LIMIT_SECONDS)
            first.create("one", weights, model="again")
            rss = psutil.Process(first.process.pid).memory_info().rss
            assert rss < IDLE_MEGABYTES << 20, f"{rss >> 20} MB"
            second = Deployer(tmp_path / "root", triton, redis.url)
            with second:
                wait_for(lambda: not second.process.running)
            assert "another deployer is active" in second.log.read_text()
            os.kill(first.process.pid or 0, signal.SIGKILL)
        await client.hdel(DEPLOYMENTS, "deployments/one")
        triton.stop()
        triton.start()
        triton.wait_ready()
        with Deployer(tmp_path / "root", triton, redis.url) as third:
            third.process.wait_ready(LIMIT_SECONDS)
            (record,) = await published(redis, "again")
            assert record.state == stream_pb2.DEPLOYMENT_STATE_READY
            assert state(triton, record.triton_model) == "READY"
            redis.stop()
            wait_for(lambda: not third.serving())
            assert third.process.running
    finally:
        await client.aclose()
        redis.stop()
        triton.stop()


def test_a_model_whose_process_has_ended_is_loaded_again(deployer, weights, triton):
    """Triton goes on to call it ready, and sees no reason to load what has not changed."""
    deployer.create("stubborn", weights, model="stubborn")
    (name,) = (entry for entry in deployer.files() if entry.startswith("stubborn--"))
    client = StaticEngineClient(triton, name)
    for _ in range(2):
        for stub in stubs(triton):
            stub.kill()
        wait_for(lambda: not client.describe())
        wait_for(client.describe)
    deployer.delete("stubborn")


def test_a_wrong_secret_is_told_apart_from_an_absent_triton(tmp_path, triton, redis_server):
    with Deployer(tmp_path / "root", triton, redis_server.url, secret="wrong") as deployer:
        wait_for(lambda: "triton-control-secret" in deployer.log.read_text())
        assert not deployer.serving()
