"""Operations that share a device or a queue run one after the other, others side by side."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer.app.creation import Creation, Strategy
from uellm_deployer.app.operations import Request
from uellm_deployer.app.turns import EVERYTHING, Turns
from uellm_deployer.domain.deployment import Stage, State

from tests.support.deployer import GIB, DeployerWorld, a_spec, gpu, machine
from uellm.rpc.errors import AlreadyExistsError, ResourceExhaustedError

NO_REQUEST = Request("", "")


@pytest.fixture
def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    world.machine.topology = machine(gpu("g0"), gpu("g1"))
    yield world
    world.repository.close()


class Held:
    """Loads of these models wait until they are let go."""

    def __init__(self, world: DeployerWorld, *models: str) -> None:
        self.entered: list[str] = []
        self.go = asyncio.Event()
        load = world.triton.load

        async def held(name: str) -> None:
            model = name.partition("--")[0]
            self.entered.append(model)
            if model in models:
                await self.go.wait()
            await load(name)

        world.triton.load = held


def wanted(**changes):
    return a_spec(dtype="float32", **changes)


async def begin(world: DeployerWorld, model: str, *devices: str, **changes):
    spec = wanted(model=model, device_ids=devices, **changes)
    return await world.creation.create(Creation(model, spec), NO_REQUEST)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_other_devices_do_not_wait(world):
    held = Held(world, "a")
    first = await begin(world, "a", "g0")
    await until(lambda: held.entered)
    second = await begin(world, "b", "g1")
    await until(lambda: world.book.operation(second.name).done)
    assert not world.book.operation(first.name).done
    held.go.set()
    await until(lambda: world.book.operation(first.name).done)
    assert {one.state for one in world.book.deployments.values()} == {State.READY}


async def test_the_same_device_is_waited_for_in_order_of_arrival(world):
    held = Held(world, "a")
    operations = [await begin(world, model, "g0") for model in "abc"]
    await until(lambda: held.entered)
    other = await begin(world, "d", "g1")
    await until(lambda: world.book.operation(other.name).done)
    assert held.entered == ["a", "d"]
    held.go.set()
    await until(lambda: all(world.book.operation(one.name).done for one in operations))
    assert held.entered == ["a", "d", "b", "c"]


async def test_a_queue_changes_hands_one_after_the_other(world):
    """On devices of their own: else each would replace what served, and both would serve."""
    held = Held(world, "a")
    await begin(world, "a", "g0")
    spec = wanted(model="a", device_ids=("g1",))
    await world.creation.create(Creation("next", spec), NO_REQUEST)
    await until(lambda: held.entered)
    held.go.set()
    await asyncio.gather(*world.operations._tasks)
    assert set(world.book.deployments) == {"deployments/next"}


async def test_traffic_is_divided_behind_what_changes_the_queue(world):
    await world.finish(begin(world, "a", "g0"))
    held = Held(world, "a")
    spec = wanted(model="a", device_ids=("g1",))
    await world.creation.create(Creation("next", spec, Strategy.BESIDE), NO_REQUEST)
    await until(lambda: held.entered)
    dividing = asyncio.create_task(world.traffic.set("a", {"deployments/a": 0.5, "deployments/next": 0.5}))
    await asyncio.sleep(0)
    held.go.set()
    assert [one.traffic_share for one in await dividing] == [0.5, 0.5]


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "while the first one loads"])
async def test_the_last_room_of_a_device_is_given_once(world, begun):
    needed = (await world.planning.plan(wanted())).plan.needs["g0"]
    world.machine.topology = machine(gpu("g0", free_gib=(needed + 1) / GIB))
    held = Held(world, "a")
    first = begin(world, "a", "g0")
    if begun:
        operation = await first
        await until(lambda: held.entered)
        with pytest.raises(ResourceExhaustedError, match="free"):
            await begin(world, "b", "g0")
    else:
        results = await asyncio.gather(first, begin(world, "b", "g0"), return_exceptions=True)
        operation, refusal = results
        assert isinstance(refusal, ResourceExhaustedError)
    held.go.set()
    await until(lambda: world.book.operation(operation.name).done)
    assert world.book.operation(operation.name).failure is None
    assert held.entered == ["a"]


async def test_weights_that_are_being_loaded_count_once(world):
    plan = (await world.planning.plan(wanted(device_ids=("g0",)))).plan
    needed, weights = plan.needs["g0"], plan.stages[0].weight_bytes
    world.machine.topology = machine(gpu("g0", free_gib=2 * needed / GIB))
    held = Held(world, "a")
    await begin(world, "a", "g0")
    await until(lambda: held.entered)
    for loaded in (0, weights // 2, weights):
        (device,) = world.machine.topology.devices
        world.machine.topology = machine(replace(device, free_memory_bytes=2 * needed - loaded))
        await world.planning.plan(wanted(model="b", device_ids=("g0",)))
    world.machine.topology = machine(replace(device, free_memory_bytes=2 * needed - weights - 1))
    with pytest.raises(ResourceExhaustedError):
        await world.planning.plan(wanted(model="b", device_ids=("g0",)))
    held.go.set()
    await asyncio.gather(*world.operations._tasks)


async def test_reconcile_waits_for_all_and_all_for_it(world):
    held = Held(world, "a", "b")
    for model, device in (("a", "g0"), ("b", "g1")):
        await begin(world, model, device)
    await until(lambda: len(held.entered) == 2)
    reconciling = asyncio.create_task(world.reconcile.run(repair=True))
    await asyncio.sleep(0)
    last = await begin(world, "c", "g1")
    assert not reconciling.done()
    held.go.set()
    assert await reconciling == []
    await until(lambda: world.book.operation(last.name).done)
    assert world.book.operation(last.name).stage is Stage.DONE


async def test_the_keeper_mends_beside_an_operation(world):
    await world.finish(begin(world, "a", "g0"))
    held = Held(world, "b")
    await begin(world, "b", "g1")
    await until(lambda: held.entered)
    world.triton.loaded.clear()
    await world.keeper.repair()
    assert world.triton.loaded == {world.book.deployment("deployments/a").plan.triton_model}
    held.go.set()
    await asyncio.gather(*world.operations._tasks)


async def test_a_failed_deployment_is_not_created_anew_while_it_is_deleted(world):
    world.faults.arm("load", ResourceExhaustedError("x", "the reason"))
    await world.finish(begin(world, "a", "g0"))
    async with world.operations.changing:
        await world.deletion.delete("deployments/a", "", NO_REQUEST, None)
        with pytest.raises(AlreadyExistsError, match="wait"):
            await begin(world, "a", "g0")
    await asyncio.gather(*world.operations._tasks)
    assert world.book.deployments == {}


async def test_recreate_counts_the_devices_of_what_goes(world):
    await world.finish(begin(world, "a", "g0"))
    held = Held(world, "b")
    await begin(world, "b", "g0")
    await until(lambda: held.entered)
    spec = wanted(model="a", device_ids=("g1",))
    operation = await world.creation.create(Creation("next", spec, Strategy.RECREATE), NO_REQUEST)
    assert world.book.operation(operation.name).stage is Stage.PLAN
    held.go.set()
    await asyncio.gather(*world.operations._tasks)
    assert world.book.operation(operation.name).failure is None


THINGS = st.one_of(st.just(EVERYTHING), st.frozensets(st.sampled_from("abcd"), min_size=1, max_size=3))


@given(st.lists(THINGS, min_size=1, max_size=8), st.data())
async def test_turns_keep_their_law(wishes, data):
    """Nobody inside shares with another; who is first of those that share is inside; who gave up is in nobody's way."""
    turns, inside, doors = Turns(), set(), [asyncio.Event() for _ in wishes]

    def shares(a: int, b: int) -> bool:
        return wishes[a] is None or wishes[b] is None or bool(wishes[a] & wishes[b])

    async def go(number: int) -> None:
        async with turns.of(wishes[number]):
            inside.add(number)
            try:
                await doors[number].wait()
            finally:
                inside.discard(number)

    tasks = {number: asyncio.create_task(go(number)) for number in range(len(wishes))}
    left = list(tasks)
    while left:
        for _ in range(3 * len(wishes)):
            await asyncio.sleep(0)
        first = {one for at, one in enumerate(left) if not any(shares(one, before) for before in left[:at])}
        assert inside == first
        leaver = data.draw(st.sampled_from(left))
        if leaver in inside:
            doors[leaver].set()
        else:
            tasks[leaver].cancel()
        await asyncio.gather(tasks[leaver], return_exceptions=True)
        left.remove(leaver)
