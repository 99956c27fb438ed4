"""Restarting Triton: the use case, who asks for it, and the hosts that can."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from uellm_deployer.__main__ import host_of
from uellm_deployer.adapters.docker_host import SERVICE_LABEL, DockerHost
from uellm_deployer.adapters.triton_host import FixedHost, LocalHost
from uellm_deployer.app.ports import UNLOAD_TIMEOUT, JournalEntry
from uellm_deployer.app.reconcile import Drift
from uellm_deployer.config import DeployerSettings
from uellm_deployer.domain.deployment import State

from tests.support.deployer import DeployerWorld
from tests.support.docker_engine import Container, DockerEngine
from uellm.local.state import StateFolder
from uellm.rpc.errors import FailedPreconditionError, PermissionDeniedError, UnavailableError
from uellm.rpc.settings import load
from uellm.v1 import deployer_pb2 as pb

ONE, TWO = "deployments/one", "deployments/two"
REFUSED = FailedPreconditionError("triton", "no", reason="TRITON_HOST_FIXED")
STUCK = UnavailableError("it does not go", reason=UNLOAD_TIMEOUT)


@pytest.fixture
async def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    await world.create("one")
    yield world
    world.repository.close()


# The use case.


async def test_what_serves_is_drained_and_loaded_again(world):
    begin, restarted_at = world.clock.time, []
    world.publisher.is_drained = lambda: world.clock.time >= begin + 7
    restart = world.host.restart

    async def note() -> None:
        restarted_at.append(world.clock.time - begin)
        assert world.publisher.records[ONE].state is State.DRAINING
        await world.keeper.publish()
        assert world.publisher.records[ONE].state is State.DRAINING, "the keeper's round must not send queries there"
        await restart()

    world.host.restart = note
    drifts = await world.reconcile.run(repair=True, restart=True)
    assert drifts == [
        Drift("triton", "a restart is asked for", f"restarted; drained before and loaded again: {ONE}"),
        Drift(ONE, "Triton does not serve it", "loaded again"),
    ]
    states = [state for _, state in world.publisher.history]
    assert states == [State.READY, State.DRAINING, State.READY, State.READY], "queries may come while it is loaded"
    assert len(restarted_at) == 1
    assert 7 <= restarted_at[0] < 8
    assert world.triton.loaded == {world.book.deployment(ONE).plan.triton_model}
    assert world.publisher.records[ONE].state is State.READY
    assert await world.reconcile.run(repair=True) == []


async def test_validate_only_tells_and_does_nothing(world):
    request = pb.ReconcileRequest(validate_only=True, restart_triton=True)
    (drift,) = (await world.servicer().Reconcile(request, None)).drifts
    assert (drift.subject, drift.repair) == ("triton", f"restarted; drained before and loaded again: {ONE}")
    assert world.host.restarts == 0
    assert world.publisher.history[-1] == (ONE, State.READY)


@pytest.mark.parametrize("repair", [True, False])
async def test_a_host_that_cannot_is_refused_before_anything_drains(world, repair):
    world.faults.arm("host", REFUSED)
    with pytest.raises(FailedPreconditionError) as refused:
        await world.reconcile.run(repair=repair, restart=True)
    assert refused.value.reason == "TRITON_HOST_FIXED"
    assert world.publisher.history[-1] == (ONE, State.READY)


async def test_a_host_that_fails_leaves_what_serves_to_the_keeper(world):
    async def fail() -> None:
        raise UnavailableError("the engine is gone")

    world.host.restart = fail
    with pytest.raises(UnavailableError, match="the engine is gone"):
        await world.reconcile.run(repair=True, restart=True)
    await world.keeper.publish()
    assert world.publisher.records[ONE].state is State.READY


async def test_a_triton_that_does_not_answer_is_restarted_all_the_same(world):
    world.triton.batches_running = lambda name: _raise(UnavailableError("Triton is away"))
    await world.restart.restart()
    assert world.host.restarts == 1


async def test_the_wait_for_triton_has_an_end(world):
    world.faults.arm("index", UnavailableError("Triton is away"), always=True)
    with pytest.raises(UnavailableError, match="Triton is away"):
        await world.restart.restart()
    assert world.host.restarts == 1
    assert not world.removal.aside


async def _raise(error: Exception) -> int:
    raise error


# The keeper.


async def half_removed(world: DeployerWorld, name: str = ONE) -> None:
    """Its model does not go until Triton is restarted."""
    deployment = world.book.deployment(name)
    world.triton.loaded.discard(deployment.plan.triton_model)
    await world.book.write(JournalEntry(deployment=_deleting(deployment)))
    world.faults.arm("unload", STUCK, always=True)


def _deleting(deployment):
    from dataclasses import replace

    return replace(deployment, state=State.DELETING)


async def test_a_model_that_does_not_go_is_freed_by_a_restart(world):
    await half_removed(world)
    await world.keeper.repair()
    assert world.host.restarts == 1
    assert (world.book.deployments, world.files()) == ({}, set())


@pytest.mark.parametrize("who", ["another deployment", "a model of others", "a host that cannot", "another reason"])
async def test_nothing_that_serves_is_interrupted_unasked(world, who):
    if who == "another deployment":
        await world.create("two", model="other")
    await half_removed(world)
    if who == "a model of others":
        world.triton.loaded.add("resnet")
    if who == "a host that cannot":
        world.faults.arm("host", REFUSED)
    if who == "another reason":
        world.faults.arm("unload", UnavailableError("Triton is away"), always=True)
    with pytest.raises(UnavailableError):
        await world.keeper.repair()
    assert world.host.restarts == 0
    assert world.book.deployment(ONE).state is State.DELETING


# Hosts.


def settings(*flags: str) -> DeployerSettings:
    return load(DeployerSettings, ["--repository", "/tmp/none", *flags], prog="x")


def test_settings_choose_the_host(capsys, tmp_path):
    assert isinstance(host_of(settings()), FixedHost)
    assert isinstance(host_of(settings("--triton-host", "local", "--triton-state", str(tmp_path))), LocalHost)
    assert isinstance(host_of(settings("--triton-host", "compose")), DockerHost)
    with pytest.raises(SystemExit):
        settings("--triton-host", "local")
    assert "needs --triton-state" in capsys.readouterr().err


async def test_a_fixed_triton_is_refused_with_what_to_do():
    host = FixedHost("triton:8001")
    assert await host.environment() == {}
    assert await FixedHost("triton:8001", "2,3").environment() == {"CUDA_VISIBLE_DEVICES": "2,3"}
    for attempt in (host.check, host.restart):
        with pytest.raises(FailedPreconditionError, match=r"triton:8001.*--triton-host") as refused:
            await attempt()
        assert refused.value.reason == "TRITON_HOST_FIXED"


async def test_a_stack_that_is_gone_is_refused(tmp_path):
    with pytest.raises(FailedPreconditionError, match="no stack runs") as refused:
        await LocalHost(tmp_path, {}).restart()
    assert refused.value.reason == "TRITON_HOST_GONE"
    assert StateFolder(tmp_path).restarts_asked() == frozenset()


async def test_a_stack_is_asked_and_waited_for(tmp_path):
    folder, seen = StateFolder(tmp_path), threading.Event()
    with folder.held():
        asking = asyncio.create_task(LocalHost(tmp_path, {"A": "B"}).restart())
        while not folder.restarts_asked():
            await asyncio.wait({asking}, timeout=0.01)
        assert folder.restarts_asked() == {"triton"}
        assert not seen.is_set()
        assert not asking.done()
        folder.restart_done("triton")
        await asyncio.wait_for(asking, 10)
        with pytest.raises(UnavailableError, match="has not restarted Triton"):
            await LocalHost(tmp_path, {}, asked_seconds=0.1).restart()
        assert folder.restarts_asked() == frozenset(), "no surprise later"


@pytest.fixture
def engine(tmp_path):
    engine = DockerEngine(
        [
            Container("1a", "uellm-triton-1", [SERVICE_LABEL], ["CUDA_VISIBLE_DEVICES=2,3", "EMPTY=", "X=a=b"]),
            Container("2b", "uellm-redis-1", ["com.docker.compose.service=redis"]),
        ]
    )
    with engine.on(tmp_path / "docker.sock"):
        yield engine


async def test_the_container_of_the_service_is_restarted(engine, tmp_path):
    host = DockerHost(tmp_path / "docker.sock")
    await host.check()
    await host.restart()
    assert [one.restarts for one in engine.containers] == [1, 0]
    assert engine.asked[-1] == "POST /containers/1a/restart?t=30"
    assert await host.environment() == {"CUDA_VISIBLE_DEVICES": "2,3", "EMPTY": "", "X": "a=b"}


async def test_a_container_that_is_named_is_restarted(engine, tmp_path):
    await DockerHost(tmp_path / "docker.sock", "uellm-redis-1").restart()
    assert [one.restarts for one in engine.containers] == [0, 1]
    assert await DockerHost(tmp_path / "docker.sock", "uellm-redis-1").environment() == {}
    with pytest.raises(FailedPreconditionError, match=r"404.*No such container: none") as refused:
        await DockerHost(tmp_path / "docker.sock", "none").check()
    assert refused.value.reason == "TRITON_HOST_REFUSED"


@pytest.mark.parametrize("count", [0, 2])
async def test_which_container_must_be_clear(engine, tmp_path, count):
    engine.containers = [Container(str(i), f"p{i}-triton-1", [SERVICE_LABEL]) for i in range(count)]
    with pytest.raises(FailedPreconditionError, match="--triton-container") as refused:
        await DockerHost(tmp_path / "docker.sock").restart()
    assert ("p0-triton-1, p1-triton-1" if count else "there are: none") in refused.value.message


async def test_an_engine_that_is_not_there(tmp_path):
    with pytest.raises(UnavailableError, match="--docker-socket"):
        await DockerHost(tmp_path / "none.sock").check()


async def test_an_engine_that_may_not_be_used(tmp_path, monkeypatch):
    """Root may use every socket, so the refusal itself is made here."""
    import socket

    class Denied(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError

    monkeypatch.setattr(socket, "socket", Denied)
    with pytest.raises(PermissionDeniedError, match="docker"):
        DockerHost(tmp_path / "docker.sock")._request("GET", "/", 1)
