"""The deployer's repository is always in a known state: real processes, real Triton, real Redis, a light engine.

SIGKILL at every step, files changed by hand, a Redis that was emptied, a load that takes too long.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from tritonclient.grpc import service_pb2

from tests.support.killed import LIMIT_SECONDS, KilledDeployer, wait_for
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import StaticEngineClient, control_call, load, start_triton
from uellm.local.redis import EmbeddedRedis
from uellm.rpc.errors import FailedPreconditionError
from uellm.rpc.status import from_status
from uellm.v1 import deployer_pb2 as pb

STRIDE = 1 if os.environ.get("UELLM_KILLS") == "all" else 13
"""Every so many points; set UELLM_KILLS=all for each of them."""


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory, emptied_redis: EmbeddedRedis) -> Iterator[KilledDeployer]:
    folder = tmp_path_factory.mktemp("killed")
    weights = make_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")
    triton = start_triton(folder)
    try:
        with KilledDeployer(folder, triton, emptied_redis, weights) as deployer:
            deployer.finish(deployer.create())
            deployer.finish(deployer.create())  # so that there is something to return to
            yield deployer
    finally:
        triton.stop()


@pytest.fixture
def serving(deployer: KilledDeployer) -> KilledDeployer:
    """The deployer with one deployment that serves, and nothing else."""
    if not deployer.serving():
        deployer.finish(deployer.create())
    deployer.check()
    return deployer


@pytest.mark.parametrize("kind", ["create", "recreate", "roll_back", "delete"])
def test_killed_at_any_step(deployer: KilledDeployer, kind: str) -> None:
    """After a restart the operation has ended, made or undone as a whole, and nothing is left over."""
    for point in itertools.count(1, STRIDE):
        if not deployer.serving():
            deployer.finish(deployer.create())
        [old] = deployer.serving()
        effect, begun = deployer.killed_in(getattr(deployer, kind), point)
        if not effect:
            assert point > STRIDE, "nothing was killed"
            break
        deployer.start()
        deployer.check()
        serving = set(deployer.serving())
        if begun is None:
            assert serving == {old}, effect
            continue
        ended = deployer.book().operations[begun.name]
        assert ended.failure is None or ended.failure.reason == "RESTARTED", effect
        made = serving == ({begun.deployment} if kind != "delete" else set())
        assert made == (ended.failure is None), effect
        assert made or serving == {old}, effect


def drifts(deployer: KilledDeployer, *, repair: bool) -> list[tuple[str, str]]:
    request = pb.ReconcileRequest(validate_only=not repair)
    found = deployer.stub.Reconcile(request, timeout=LIMIT_SECONDS, wait_for_ready=True).drifts
    return [(drift.subject, drift.difference) for drift in found]


@pytest.mark.parametrize("file", ["config.pbtxt", "1/model.py"])
def test_a_file_changed_by_hand_is_told_and_written_and_loaded_again(serving: KilledDeployer, file: str) -> None:
    [(name, one)] = serving.serving().items()
    changed = serving.folder / "models" / one.plan.triton_model / file
    sound = changed.read_text()
    harm = {
        "1/model.py": ("while (weights", "assert False\n        while (weights"),
        "config.pbtxt": ("decoupled: true", "decoupled: false"),
    }
    changed.write_text(sound.replace(*harm[file]))
    told = [(name, "its repository entry was changed")]
    assert drifts(serving, repair=False) == told
    assert changed.read_text() != sound
    assert drifts(serving, repair=True) == told
    assert changed.read_text() == sound
    assert drifts(serving, repair=True) == []
    serving.check()


def test_what_somebody_loaded_from_a_changed_file_is_replaced(serving: KilledDeployer) -> None:
    [one] = serving.serving().values()
    engine = serving.folder / "models" / one.plan.triton_model / "1" / "model.py"
    engine.write_text(engine.read_text().replace("row.prompt[i %", "row.prompt[-i %"))
    load(serving.triton, one.plan.triton_model)
    client = StaticEngineClient(serving.triton, one.plan.triton_model)
    answer = client.run({"r": {"prompt": "abc", "max_tokens": 4, "raw_prompt": True}})
    assert answer.rows["r"].text == "acba", "what was changed is not served"
    assert len(drifts(serving, repair=True)) == 1
    serving.check()


def test_a_redis_that_was_emptied_is_told_and_filled_again(serving: KilledDeployer) -> None:
    [name] = serving.serving()
    serving.redis.flushall()
    assert drifts(serving, repair=False) in ([(name, "not published")], [])  # unless a round has just been
    drifts(serving, repair=True)
    assert serving.differences() == []


def test_a_load_that_ends_after_its_time_is_not_left_behind(serving: KilledDeployer) -> None:
    """Triton answers the unload of a model that it loads once it has loaded it."""
    before = serving.serving()
    hold = serving.weights / "hold"
    hold.touch()
    try:
        operation = serving.create()
        progress = pb.DeploymentProgress()

        def rolls_back() -> bool:
            now = serving.stub.GetOperation(pb.GetOperationRequest(name=operation.name))
            now.metadata.Unpack(progress)
            return progress.stage == pb.DEPLOYMENT_STAGE_ROLL_BACK

        wait_for(rolls_back)
        index = control_call(serving.triton, "RepositoryIndex", service_pb2.RepositoryIndexRequest())
        assert "LOADING" in {entry.state for entry in index.models}
    finally:
        hold.unlink()
    ended = serving.finish(operation)
    error = from_status(ended.error)
    assert isinstance(error, FailedPreconditionError)
    assert error.reason == "LOAD_TIMEOUT"
    serving.check()
    assert serving.serving() == before
