"""The client and the command line against the deployer as a process, a real Triton and a real Redis."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_deployer_service import LIMIT_SECONDS, Deployer
from tests.support.command_line import Run, ask, runner
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import start_triton
from uellm.client import AsyncClient, Deployment, DeploymentProgress, DeploymentSpec, Endpoints
from uellm.local.redis import EmbeddedRedis
from uellm.v1 import deployer_pb2 as pb


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


@pytest.fixture
def uellm(deployer: Deployer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    ask(monkeypatch, deployer.address)
    return runner(monkeypatch, capsys)


async def test_the_client_deploys_and_follows(deployer: Deployer, weights: Path) -> None:
    stages: list[int] = []

    def note(progress: DeploymentProgress) -> None:
        stages.append(progress.stage)

    async with AsyncClient(Endpoints(*[deployer.address] * 3), model="tiny") as client:
        spec = DeploymentSpec(model="tiny", weights_path=str(weights), max_batch_rows=2)
        operation = await client.create_deployment(spec, deployment_id="one")
        made: Deployment = await operation.result(LIMIT_SECONDS, note)
        assert pb.DEPLOYMENT_STAGE_LOAD in stages
        assert made.measured_kv_bytes_per_token == 512
        assert await client.get_deployment("deployments/one") == made


def test_the_command_line_goes_on_from_there(uellm: Run, deployer: Deployer, weights: Path, tmp_path: Path) -> None:
    (entry,) = deployer.files()
    broken = shutil.copytree(weights, tmp_path / "broken", ignore=shutil.ignore_patterns("token*"))
    status, out, err = uellm("deploy", broken, "--model", "tiny", "--id", "two")
    assert (status, out) == (1, "")
    assert "error: Triton could not load tiny--" in err
    assert "tokenizer" in err
    assert "At:" not in err, "calls are for Triton's log"
    assert "`uellm undeploy two` takes it off the list" in err
    listed = uellm("deployments")[1]
    assert re.search(r"one +tiny +ready +100 % +layers 0-1 on cpu0 .* ms .* ms ", listed)
    assert re.search(r"two +tiny +failed", listed)

    stray = deployer.root / "models" / "ghost--0123456789"
    shutil.copytree(deployer.root / "models" / entry, stray)
    assert uellm("reconcile")[0] == 1
    assert uellm("reconcile")[0] == 0
    assert deployer.files() == {entry}
    assert [uellm("undeploy", name)[0] for name in ("one", "two", "two")] == [0, 0, 1]
    assert deployer.files() == set()
