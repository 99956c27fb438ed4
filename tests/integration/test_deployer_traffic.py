"""Deployments beside each other, rollback and drift: the deployer as a process, a real Triton, a real Redis."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from uellm_deployer.adapters.model_folder import read_shape
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.topology import Link, Topology

from tests.integration.test_deployer_service import Deployer, published
from tests.support.deployer import CPU, GIB, a_spec
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import StaticEngineClient, load, start_triton, state
from uellm.client import Client, Endpoints
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import connect
from uellm.messaging.keys import DEPLOYMENTS
from uellm.rpc.errors import FailedPreconditionError, InvalidArgumentError
from uellm.v1 import deployer_pb2 as pb

LIMIT_SECONDS = 60.0
STRANGER = "ghost--0123456789"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory, emptied_redis: EmbeddedRedis) -> Iterator[Deployer]:
    folder = tmp_path_factory.mktemp("repository")
    triton = start_triton(folder)
    try:
        with Deployer(folder, triton, emptied_redis.url) as deployer:
            deployer.process.wait_ready(LIMIT_SECONDS)
            yield deployer
    finally:
        triton.stop()


def create(deployer: Deployer, name: str, weights: Path, rows: int, strategy: str = "UNSPECIFIED") -> pb.Deployment:
    spec = pb.DeploymentSpec(model="tiny", weights_path=str(weights), max_batch_rows=rows)
    request = pb.CreateDeploymentRequest(deployment_id=name, spec=spec, strategy=f"DEPLOYMENT_STRATEGY_{strategy}")
    operation = deployer.finish(deployer.call("CreateDeployment", request))
    deployment = pb.Deployment()
    assert operation.response.Unpack(deployment), operation.error
    return deployment


async def shares(redis_server: EmbeddedRedis) -> dict[str, float]:
    return {record.name.removeprefix("deployments/"): record.traffic_share for record in await published(redis_server)}


async def test_a_canary_its_share_and_the_way_back(deployer, weights, redis_server):
    create(deployer, "main", weights, rows=2)
    assert create(deployer, "canary", weights, rows=3, strategy="BESIDE").record.traffic_share == 0
    assert await shares(redis_server) == {"main": 1, "canary": 0}
    with Client(Endpoints(*[deployer.address] * 3), model="tiny") as client:
        changed = client.set_traffic({"deployments/main": 0.75, "deployments/canary": 0.25})
        assert [one.record.traffic_share for one in changed] == [0.25, 0.75]
        with pytest.raises(InvalidArgumentError, match="must sum to 1"):
            client.set_traffic({"deployments/main": 0.75, "deployments/canary": 0.5})
    assert await shares(redis_server) == {"main": 0.75, "canary": 0.25}

    create(deployer, "next", weights, rows=4)
    assert await shares(redis_server) == {"next": 1}
    operation = deployer.finish(deployer.call("RollbackDeployment", pb.RollbackDeploymentRequest(model="tiny")))
    back = pb.Deployment()
    assert operation.response.Unpack(back), operation.error
    assert back.name == "deployments/main", "which had more of the traffic than the canary"
    assert back.plan.spec.max_batch_rows == 2
    assert list(await shares(redis_server)) == [back.name.removeprefix("deployments/")]
    assert deployer.files() == {back.record.triton_model}
    answer = StaticEngineClient(deployer.triton, back.record.triton_model).run({"r": {"prompt": "x", "max_tokens": 3}})
    assert "r" in answer.rows
    deployer.delete(back.name.removeprefix("deployments/"))
    create(deployer, "fresh", weights, rows=2)
    with pytest.raises(FailedPreconditionError) as caught:
        deployer.call("RollbackDeployment", pb.RollbackDeploymentRequest(model="tiny"))
    assert caught.value.reason == "NOTHING_TO_RETURN_TO"
    deployer.delete("fresh")


async def test_drift_is_told_and_repaired(deployer, weights, redis_server):
    one = create(deployer, "one", weights, rows=2)
    assert not deployer.call("Reconcile", pb.ReconcileRequest()).drifts
    models, name = deployer.root / "models", one.record.triton_model
    shutil.copytree(models / name, models / STRANGER)
    redis = connect(redis_server.url)
    try:
        ghost = one.record
        ghost.name = "deployments/ghost"
        await redis.hset(DEPLOYMENTS, ghost.name, ghost.SerializeToString())
    finally:
        await redis.aclose()
    expected = [
        (STRANGER, "a repository entry of no deployment", "unloaded and removed"),
        ("deployments/ghost", "published, though it does not serve", "withdrawn"),
    ]
    for validate_only in (True, False):
        found = deployer.call("Reconcile", pb.ReconcileRequest(validate_only=validate_only)).drifts
        assert [(drift.subject, drift.difference, drift.repair) for drift in found] == expected
    assert not deployer.call("Reconcile", pb.ReconcileRequest()).drifts
    assert deployer.files() == {name}
    assert state(deployer.triton, name) == "READY"
    assert list(await shares(redis_server)) == ["one"]
    deployer.delete("one")


def test_a_plan_of_two_stages_answers_like_one_of_one(deployer, weights):
    """Both stages lie on the CPU: shown is that Triton loads what is written, and that the tokens are the same."""
    shape, spec = read_shape(str(weights)), a_spec(weights_path=str(weights), context_tokens=128)
    roomy = replace(CPU, free_memory_bytes=GIB)
    whole = HelrPlanner().place(spec, shape, Topology((roomy,), (), "test")).plan
    (stage,) = whole.stages
    # Neither node has room for both layers.
    nodes = [
        replace(CPU, id=f"cpu{n}", free_memory_bytes=stage.total_bytes - stage.weight_bytes // 3) for n in range(2)
    ]
    link = Link("cpu0", "cpu1", "SYS", 20e9, 1e-6, peer_access=False)
    spread = HelrPlanner().place(spec, shape, Topology(tuple(nodes), (link,), "test")).plan
    assert [stage.layer_count for stage in spread.stages] == [1, 1]
    answers = []
    for plan in (whole, spread):
        entry = TritonRenderer(deployer.root).render(plan)
        for path, content in entry.files.items():
            file = deployer.root / "models" / entry.name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        load(deployer.triton, entry.name)
        engine = StaticEngineClient(deployer.triton, entry.name)
        answers.append(engine.run({"r": {"prompt": "Hello", "max_tokens": 20, "ignore_eos": True}}).rows["r"].tokens)
    assert len(answers[0]) == 20
    assert answers[0] == answers[1]
    drifts = deployer.call("Reconcile", pb.ReconcileRequest()).drifts
    assert {drift.subject for drift in drifts} == {whole.triton_model, spread.triton_model}
    assert deployer.files() == set()
