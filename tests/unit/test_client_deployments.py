"""Both clients against the deployer's use cases: operations, their ends, and answers that are lost."""

from __future__ import annotations

import inspect
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.domain.deployment import State

from tests.support.deployer_server import DeployerServer
from uellm.client import AsyncClient, Client, Deployment, DeploymentProgress, DeploymentSpec, Endpoints
from uellm.client.deploying import LONGEST_LOOK_SECONDS, SHORTEST_CALL_SECONDS, Awaited, Limits, Waiting
from uellm.local.process import free_port
from uellm.rpc.errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from uellm.v1.deployer_pb2 import DEPLOYMENT_STAGE_LOAD
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY

KINDS = {"threads": Client, "asyncio": AsyncClient}


async def settled(value: Any) -> Any:
    """What a method of either client returns."""
    return await value if inspect.isawaitable(value) else value


async def end(operation: Any, *arguments: Any, **options: Any) -> Any:
    """The result of an operation that either client's method begins."""
    return await settled((await settled(operation)).result(*arguments, **options))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Callable[..., Any]:
    made: Callable[..., Any] = KINDS[request.param]
    return made


@pytest.fixture
async def client(deployer_server: DeployerServer, kind: Callable[..., Any]) -> AsyncIterator[Any]:
    client = kind(Endpoints(*[deployer_server.address] * 3), model="smol")
    yield client
    await settled(client.close())


def spec(**changes: Any) -> DeploymentSpec:
    return DeploymentSpec(**{"model": "smol", "weights_path": "/models/smol", "context_tokens": 2048, **changes})


async def test_from_nothing_to_nothing(client: Any, deployer_server: DeployerServer) -> None:
    stages: list[DeploymentProgress] = []
    deployer_server.may_load.clear()

    def note(progress: DeploymentProgress) -> None:
        stages.append(progress)
        if progress.stage == DEPLOYMENT_STAGE_LOAD:
            deployer_server.may_load.set()

    operation = await settled(client.create_deployment(spec(), deployment_id="one"))
    assert not operation.done
    made: Deployment = await settled(operation.result(on_progress=note))
    assert (made.name, made.state) == ("deployments/one", DEPLOYMENT_STATE_READY)
    assert operation.done
    assert operation.progress.percent == 100
    percents = [progress.percent for progress in stages]
    assert percents == sorted(percents)
    assert 20 in percents
    assert {progress.deployment for progress in stages} == {"deployments/one"}

    assert await settled(client.get_deployment("deployments/one")) == made
    assert [one.name for one in await settled(client.deployments())] == ["deployments/one"]
    found = await settled(client.get_operation(operation.name))
    assert await settled(found.result(0)) == made
    with pytest.raises(AbortedError, match="etag"):
        await settled(client.delete_deployment(made.name, etag="other"))
    removal = await settled(client.delete_deployment(made.name, etag=made.etag, drain_timeout_seconds=0))
    assert await settled(removal.result()) is None
    assert await end(client.get_operation(removal.name)) is None
    assert await end(client.get_operation(operation.name)) is None, "which is gone since"
    with pytest.raises(NotFoundError, match=r"deployments/one"):
        await settled(client.get_deployment("deployments/one"))


async def test_what_is_only_checked_changes_nothing(client: Any, deployer_server: DeployerServer) -> None:
    operation = await settled(client.create_deployment(spec(), validate_only=True))
    assert (operation.name, operation.done) == ("", True)
    planned = await settled(operation.result())
    assert planned.plan.stages[0].layer_count == 30
    assert deployer_server.operations() == []


async def test_what_was_deployed_is_served_a_moment_later(client: Any, deployer_server: DeployerServer) -> None:
    deployer_server.others.unheard_of = 2
    await settled(client.wait_until_served("smol"))
    assert deployer_server.others.unheard_of == 0
    deployer_server.others.unheard_of = 1_000
    with pytest.raises(DeadlineExceededError, match=r"a deployment of smol within 0\.2 s$") as caught:
        await settled(client.wait_until_served(timeout_seconds=0.2))
    assert caught.value.reason == "NOT_SERVED_YET"


async def test_the_way_back(client: Any) -> None:
    await end(client.create_deployment(spec(), deployment_id="one"))
    await end(client.create_deployment(spec(max_batch_rows=4), deployment_id="two"))
    assert (await end(client.rollback_deployment())).name == "deployments/one"
    with pytest.raises(NotFoundError):
        await settled(client.rollback_deployment("other"))


async def test_one_beside_another_and_its_share(client: Any) -> None:
    await end(client.create_deployment(spec(), deployment_id="one"))
    beside = await end(client.create_deployment(spec(max_batch_rows=4), deployment_id="two", strategy="beside"))
    assert beside.record.traffic_share == 0
    now = await settled(client.set_traffic({"deployments/one": 0.5, "deployments/two": 0.5}))
    assert [one.record.traffic_share for one in now] == [0.5, 0.5]


async def test_lost_answers_begin_nothing_twice(client: Any, deployer_server: DeployerServer) -> None:
    losses = deployer_server.losses
    losses |= {"CreateDeployment": 2, "GetOperation": 6}  # of which the channel itself tries 5
    deployer_server.may_load.clear()
    operation = await settled(client.create_deployment(spec()))
    assert (losses["CreateDeployment"], len(deployer_server.operations())) == (0, 1)

    def loads_after_the_losses(_progress: DeploymentProgress) -> None:
        if not losses["GetOperation"]:
            deployer_server.may_load.set()

    made = await settled(operation.result(on_progress=loads_after_the_losses))
    assert made.state == DEPLOYMENT_STATE_READY
    deployer_server.losses |= {"DeleteDeployment": 1}
    await end(client.delete_deployment(made.name))
    assert len(deployer_server.operations()) == 2


async def test_a_request_id_of_ones_own(client: Any) -> None:
    request_id = str(uuid.uuid4())
    first = await settled(client.create_deployment(spec(), request_id=request_id))
    await settled(first.result())
    assert (await settled(client.create_deployment(spec(), request_id=request_id))).name == first.name
    with pytest.raises(AlreadyExistsError, match="another request"):
        await settled(client.create_deployment(spec(max_batch_rows=4), request_id=request_id))


async def test_waiting_ends_and_the_operation_goes_on(client: Any, deployer_server: DeployerServer) -> None:
    deployer_server.may_load.clear()
    operation = await settled(client.create_deployment(spec()))
    with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s; it goes on") as caught:
        await settled(operation.result(0.2))
    assert caught.value.reason == "STILL_RUNNING"

    def leave(progress: DeploymentProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await settled(operation.result(on_progress=leave))
    deployer_server.may_load.set()
    assert (await settled(operation.result())).state == DEPLOYMENT_STATE_READY


async def test_failures_are_typed(client: Any, deployer_server: DeployerServer) -> None:
    error = FailedPreconditionError("x", "Triton could not load it: no tokenizer", reason="LOAD_FAILED")
    deployer_server.world.faults.arm("load", error)
    with pytest.raises(FailedPreconditionError, match="no tokenizer") as caught:
        await end(client.create_deployment(spec(), deployment_id="one"))
    assert caught.value.reason == "LOAD_FAILED"
    with pytest.raises(ResourceExhaustedError, match="bytes needed"):
        await settled(client.create_deployment(spec(max_batch_rows=1024, context_tokens=8192)))
    with pytest.raises(InvalidArgumentError) as refused:
        await settled(client.create_deployment(spec(weights_path="relative", dtype="int3"), deployment_id="X"))
    fields = {violation.field for violation in refused.value.violations}
    assert fields == {"spec.weights_path", "spec.dtype", "deployment_id"}
    with pytest.raises(InvalidArgumentError, match="blue_green, recreate, beside"):
        await settled(client.create_deployment(spec(), strategy="canary"))
    with pytest.raises(NotFoundError):
        await settled(client.get_operation("operations/none"))


async def test_what_was_created_and_is_gone_is_told(client: Any, deployer_server: DeployerServer) -> None:
    operation = await settled(client.create_deployment(spec(), deployment_id="one"))
    deployer_server.wait_for(lambda: deployer_server.operations()[0].done)
    await end(client.delete_deployment("deployments/one"))
    with pytest.raises(NotFoundError, match="was created, and is gone since"):
        await settled(operation.result())


async def test_drift_is_told_then_repaired(client: Any, deployer_server: DeployerServer) -> None:
    assert await settled(client.reconcile()) == []
    stray = deployer_server.world.root / "models" / "ghost--0123456789"
    stray.mkdir()
    for validate_only in (True, False):
        (drift,) = await settled(client.reconcile(validate_only=validate_only))
        assert (drift.subject, drift.repair) == (stray.name, "unloaded and removed")
        assert stray.exists() == validate_only


async def test_lists_are_read_page_by_page(client: Any, deployer_server: DeployerServer) -> None:
    made = await end(client.create_deployment(spec(), deployment_id="one"))
    book = deployer_server.world.book.deployments
    one = book[made.name]
    for number in range(120):
        book[f"deployments/n{number:03d}"] = replace(one, name=f"deployments/n{number:03d}", state=State.FAILED)
    names = [one.name for one in await settled(client.deployments())]
    assert names == sorted(book)
    assert len(names) == 121


async def test_nobody_there_is_said_soon(kind: Callable[..., Any]) -> None:
    client = kind(Endpoints(*[f"127.0.0.1:{free_port()}"] * 3), submit_seconds=0.2)
    with pytest.raises(UnavailableError):
        await settled(client.create_deployment(spec()))
    await settled(client.close())


@given(st.floats(0, 100), st.lists(st.floats(0, 5), min_size=1, max_size=9))
def test_waiting_keeps_its_time(timeout: float, looks: list[float]) -> None:
    """At most one look is too late, and that one is short."""
    now = [0.0]
    waiting = Waiting(Awaited.end_of("operations/x"), timeout, Limits(30.0, 60.0), lambda: now[0])
    for look in itertools.cycle(looks):
        try:
            pause = waiting.pause()
        except DeadlineExceededError:
            break
        assert 0 <= pause <= LONGEST_LOOK_SECONDS
        now[0] += pause
        now[0] += min(look, waiting.call_seconds())
    assert timeout <= now[0] <= timeout + SHORTEST_CALL_SECONDS + 1e-9


def test_a_deployer_out_of_reach_is_waited_for_and_then_given_up() -> None:
    now = [0.0]
    waiting = Waiting(Awaited.end_of("operations/x"), None, Limits(30.0, 10.0), lambda: now[0])

    def pauses() -> Iterator[float]:
        while True:
            yield waiting.pause(UnavailableError("gone"))

    waited = pauses()
    with pytest.raises(UnavailableError):
        for now[0] in itertools.accumulate(waited):
            pass
    assert 8 < now[0] <= 10
    with pytest.raises(NotFoundError):
        waiting.pause(NotFoundError("operation", "operations/x"))
