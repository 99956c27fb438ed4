"""Creating deployments: rollback at every step, repeated requests, taking over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from uellm_deployer.app.creation import Creation, Strategy
from uellm_deployer.app.operations import Request
from uellm_deployer.app.ports import EngineReport, JournalEntry
from uellm_deployer.domain.deployment import Stage, State
from uellm_deployer.encoding import record_message

from tests.support.deployer import CPU, GIB, DeployerWorld, a_spec, machine
from uellm.rpc.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

ONE, TWO = "deployments/one", "deployments/two"
NO_REQUEST = Request("", "")


@pytest.fixture
def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    yield world
    world.repository.close()


def stages_of(world: DeployerWorld) -> list[Stage]:
    """Steps of all operations as the journal has them."""
    from uellm_deployer.adapters.journal import decode

    entries, _ = decode((world.root / "journal" / "journal").read_bytes())
    return [entry.operation.stage for entry in entries if entry.operation]


# Creating.


async def test_create(world):
    operation = await world.create()
    assert (operation.done, operation.failure, operation.percent) == (True, None, 100)
    deployment = world.book.deployment(ONE)
    name = deployment.plan.triton_model
    assert (deployment.state, deployment.measured_kv_bytes_per_token) == (State.READY, 46_080)
    assert world.triton.loaded == {name}
    assert world.publisher.records[ONE].state is State.READY
    assert f"models/{name}/config.pbtxt" in world.files()
    steps = [Stage.PLAN, Stage.STAGE, Stage.PREFLIGHT, Stage.LOAD, Stage.VERIFY, Stage.SWITCH, Stage.SWITCH, Stage.DONE]
    assert stages_of(world) == steps


STEPS = ["stage", "stage late", "install", "install late", "load", "load late", "verify", "publish", "publish late"]
REFUSED, STOPPED = FailedPreconditionError("x", "the reason"), asyncio.CancelledError()
FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("step", "error"),
    [*((step, error) for step in STEPS for error in (REFUSED, STOPPED)), ("stage late", FULL), ("install", FULL)],
)
async def test_a_failure_at_any_step_leaves_everything_as_it_was(world, step, error):
    await world.create("zero", model="other")
    files, loaded, records = world.files(), set(world.triton.loaded), dict(world.publisher.records)
    world.faults.arm(step, error)
    operation = await world.create()
    assert operation.done
    assert (world.files(), world.triton.loaded, world.publisher.records) == (files, loaded, records)
    assert world.book.deployment(ONE).state is State.FAILED
    expected = {FailedPreconditionError: "FAILED_PRECONDITION", OSError: "INTERNAL", asyncio.CancelledError: "ABORTED"}
    assert operation.failure.code == expected[type(error)]
    if isinstance(error, FailedPreconditionError):
        assert world.book.deployment(ONE).failure.endswith(": the reason")
        assert operation.stage is Stage.ROLL_BACK
    assert (await world.create()).failure is None  # the name is free again


async def test_the_journal_can_fail_at_the_switch(world, monkeypatch):
    write = world.book.write

    async def refuse_ready(entry: JournalEntry) -> None:
        if entry.deployment and entry.deployment.state is State.READY:
            raise OSError(28, "No space left on device")
        await write(entry)

    monkeypatch.setattr(world.book, "write", refuse_ready)
    assert (await world.create()).failure.code == "INTERNAL"
    assert (world.files(), world.triton.loaded, world.publisher.records) == (set(), set(), {})


@pytest.mark.parametrize("undo", ["unload", "remove", "withdraw"])
async def test_what_could_not_be_undone_is_undone_later(world, undo):
    world.faults.arm("publish late", FailedPreconditionError("x", "the reason"))
    world.faults.arm(undo, UnavailableError("not now"))
    operation = await world.create()
    assert operation.failure.message == "the reason"
    deployment = world.book.deployment(ONE)
    assert deployment.state is State.CREATING
    assert "Not undone yet" in deployment.failure
    await world.keeper.repair()
    assert (world.files(), world.triton.loaded, world.publisher.records) == (set(), set(), {})
    assert world.book.deployment(ONE).state is State.FAILED


@pytest.mark.parametrize(
    "report",
    [
        EngineReport(10**12, 46_080, 0.1),
        EngineReport(538_060_032, 47_002, 0.1),
        EngineReport(538_060_032, 45_158, 0.1),
    ],
    ids=["weights", "more cache", "less cache"],
)
async def test_an_engine_that_differs_from_the_plan_is_refused(world, report):
    world.triton.report = report
    operation = await world.create()
    assert operation.failure.reason == "PLAN_MISMATCH"
    assert (world.files(), world.triton.loaded) == (set(), set())


@pytest.mark.parametrize("measured", [47_001, 45_159])
async def test_a_cache_within_two_percent_of_the_plan_is_taken_as_measured(world, measured):
    world.triton.report = EngineReport(538_060_032, measured, 0.1)
    operation = await world.create()
    assert operation.failure is None
    assert world.book.deployment(operation.deployment).measured_kv_bytes_per_token == measured


async def test_a_config_without_weights_is_planned_and_not_deployed(world):
    world.library.found = replace(world.library.found, has_weights=False)
    assert (await world.planning.plan(a_spec())).plan.facts.parameter_count == 134_515_008
    with pytest.raises(InvalidArgumentError, match=r"model\.safetensors"):
        await world.create()


async def test_memory_taken_since_the_plan_is_seen_before_the_load(world):
    beginning = world.creation.create(Creation("one", a_spec()), NO_REQUEST)
    operation = await beginning
    world.machine.topology = machine(replace(CPU, free_memory_bytes=GIB))
    await asyncio.gather(*world.operations._tasks)
    assert world.book.operation(operation.name).failure.reason == "OUT_OF_DEVICE_MEMORY"
    assert world.book.deployment(ONE).failure.startswith("PREFLIGHT")


async def test_deployments_share_a_device_by_what_they_may_grow_into(world):
    plan = (await world.planning.plan(a_spec())).plan
    await world.create("one", model="a")
    # What is loaded shows as used; what it may grow into does not.
    free = 2 * plan.needs["cpu0"] - plan.facts.weight_bytes
    world.machine.topology = machine(replace(CPU, free_memory_bytes=free - 1))
    with pytest.raises(ResourceExhaustedError):
        await world.creation.create(Creation("two", a_spec(model="b")), NO_REQUEST)
    world.machine.topology = machine(replace(CPU, free_memory_bytes=free))
    assert (await world.create("two", model="b")).failure is None


async def test_validate_only_changes_nothing(world):
    deployment = await world.creation.validate(Creation("", a_spec()))
    assert deployment.name == f"deployments/smol-{deployment.plan.plan_hash}"
    assert (world.files(), world.book.deployments, world.book.operations) == (set(), {}, {})


# Repeated requests.


async def test_a_repeated_request_is_the_same_operation(world):
    request = Request("id", "digest")
    first = await world.create(request=request)
    assert (await world.create(request=request)).name == first.name
    assert len(world.book.operations) == 1
    with pytest.raises(AlreadyExistsError, match="another request"):
        await world.creation.create(Creation("two", a_spec()), Request("id", "other"))


async def test_two_requests_at_once_with_one_id_are_one_operation(world):
    request = Request("id", "digest")
    creations = [world.creation.create(Creation("one", a_spec()), request) for _ in range(3)]
    operations = await asyncio.gather(*creations)
    assert len({operation.name for operation in operations}) == 1
    await asyncio.gather(*world.operations._tasks)


async def test_a_repeated_request_is_recognised_after_a_restart(world):
    request = Request("id", "digest")
    first = await world.create(request=request)
    world = world.restarted()
    assert (await world.create(request=request)).name == first.name
    world.repository.close()


async def test_names_and_plans_are_deployed_once(world):
    await world.create()
    with pytest.raises(AlreadyExistsError, match="choose another id"):
        await world.creation.create(Creation("one", a_spec(max_batch_rows=2)), NO_REQUEST)
    with pytest.raises(AlreadyExistsError, match="deployments/one"):
        await world.creation.create(Creation("two", a_spec()), NO_REQUEST)


# Taking over.


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.RECREATE])
async def test_deployments_of_other_shards_of_the_queue_stay(world, strategy):
    await world.create("one")
    for name, rows in (("two", 8), ("three", 4)):
        creation = Creation(name, a_spec(queue_shard=1, max_batch_rows=rows), strategy)
        assert (await world.finish(world.creation.create(creation, NO_REQUEST))).failure is None
    ready = {name: one for name, one in world.book.deployments.items() if one.state is State.READY}
    assert set(ready) == {ONE, "deployments/three"}
    assert record_message(ready["deployments/three"], "host:1").queue_shard == 1


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.RECREATE])
async def test_a_new_deployment_takes_over(world, strategy):
    await world.create("other", model="other")
    await world.create()
    operation = await world.finish(
        world.creation.create(Creation("two", a_spec(max_batch_rows=4), strategy), NO_REQUEST)
    )
    assert operation.failure is None
    assert set(world.book.deployments) == set(world.publisher.records) == {"deployments/other", TWO}
    assert len(world.triton.loaded) == 2
    ready, draining = (TWO, State.READY), (ONE, State.DRAINING)
    in_order = [entry for entry in world.publisher.history if entry in (ready, draining)]
    assert in_order[0] == (ready if strategy is Strategy.BLUE_GREEN else draining)


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.RECREATE])
@pytest.mark.parametrize("step", ["stage", "load", "verify", "publish late"])
async def test_the_old_deployment_serves_on_if_the_new_one_fails(world, strategy, step):
    await world.create()
    files, loaded = world.files(), set(world.triton.loaded)
    if step == "publish late" and strategy is Strategy.RECREATE:
        step = "load"  # the first publication is the old one's
    world.faults.arm(step, FailedPreconditionError("x", "the reason"))
    operation = await world.finish(
        world.creation.create(Creation("two", a_spec(max_batch_rows=4), strategy), NO_REQUEST)
    )
    assert operation.failure.message == "the reason"
    assert (world.files(), world.triton.loaded) == (files, loaded)
    assert world.publisher.records[ONE].state is State.READY
    assert set(world.publisher.records) == {ONE}
    assert world.removal.aside == set()


async def test_recreate_needs_no_memory_for_both(world):
    needs = (await world.planning.plan(a_spec())).plan.needs["cpu0"]
    weights = (await world.planning.plan(a_spec())).plan.facts.weight_bytes
    world.machine.topology = machine(replace(CPU, free_memory_bytes=needs))
    await world.create()
    world.machine.topology = machine(replace(CPU, free_memory_bytes=needs - weights))
    again = Creation("two", a_spec(weights_path="/models/smol-2"))
    with pytest.raises(ResourceExhaustedError):
        await world.creation.create(again, NO_REQUEST)
    beginning = await world.creation.create(replace(again, strategy=Strategy.RECREATE), NO_REQUEST)
    world.machine.topology = machine(replace(CPU, free_memory_bytes=needs))  # the old one's weights are gone
    await asyncio.gather(*world.operations._tasks)
    assert world.book.operation(beginning.name).failure is None
