"""Unloading waits for the memory of GPUs, and what does not come back is remembered and told."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import prometheus_client
import pytest
from uellm_deployer.app.creation import Creation, Strategy
from uellm_deployer.app.memory import RETURN_SECONDS
from uellm_deployer.app.operations import Request
from uellm_deployer.domain.topology import Topology

from tests.support.deployer import CPU, GIB, DeployerWorld, a_spec, gpu, machine

ONE = "deployments/one"
FREE = 40 * GIB


class Machine:
    """Gives a share of what was unloaded back, some seconds later."""

    def __init__(self, world: DeployerWorld, device=None) -> None:
        self.world, self.share, self.seconds = world, 1.0, 0.0
        self.device = replace(device or gpu("g0"), free_memory_bytes=FREE)
        self.unloaded: list[tuple[float, int]] = []
        world.machine.read = self.read
        unload = world.triton.unload

        async def unloading(name: str) -> None:
            if name in world.triton.loaded:
                plans = [one.plan for one in world.book.deployments.values() if one.plan.triton_model == name]
                self.unloaded.append((world.clock.time, plans[0].stages[0].weight_bytes))
            await unload(name)

        world.triton.unload = unloading

    async def read(self) -> Topology:
        now = self.world.clock.time
        back = sum(int(self.share * size) for at, size in self.unloaded if now >= at + self.seconds)
        return machine(replace(self.device, free_memory_bytes=FREE + back))


@pytest.fixture
def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    yield world
    world.repository.close()


async def deleted_after(world: DeployerWorld) -> tuple[float, str]:
    """Seconds that it took, and what was said."""
    await world.create("one", dtype="float32")
    begin = world.clock.time
    operation = await world.delete(ONE)
    assert operation.failure is None
    return world.clock.time - begin, operation.message


@pytest.mark.parametrize("seconds", [0, 5, RETURN_SECONDS - 1])
async def test_memory_is_waited_for(world, seconds):
    Machine(world).seconds = seconds
    took, message = await deleted_after(world)
    assert seconds <= took < seconds + 1
    assert message == f"{ONE} is removed"
    assert world.book.leaks == {}


@pytest.mark.parametrize(("share", "leaks"), [(0.0, True), (0.49, True), (0.51, False)])
async def test_less_than_half_is_a_leak(world, share, leaks):
    Machine(world).share = share
    took, message = await deleted_after(world)
    assert bool(world.book.leaks) is leaks
    assert ("restart Triton" in message) is leaks
    assert (RETURN_SECONDS <= took < RETURN_SECONDS + 1) is leaks


async def test_a_leak_is_told_everywhere_until_it_is_gone(world):
    there = Machine(world)
    there.share = 0.25
    await deleted_after(world)
    [(_, weights)] = there.unloaded
    lost = weights - weights // 4
    [name] = {model for model, _ in world.book.leaks}
    told = f"leaks {lost:,} bytes of g0, which unloading it did not free: restart Triton"
    again = world.restarted()
    again.machine.read = there.read
    for one in (world, again):
        there.world = one
        [drift] = await one.reconcile.run(repair=True)
        assert (drift.subject, drift.difference, drift.repair) == (name, told, "")
        assert (await one.planning.topology()).warnings == (f"{name} {told}",)
        assert leaked("g0") == lost
        await one.memory.look()
        assert one.book.leaks, "not yet"
    there.share = 1.0
    await again.memory.look()
    assert await again.reconcile.run(repair=True) == []
    assert (await again.planning.topology()).warnings == ()
    assert leaked("g0") is None
    last = again.restarted()
    assert last.book.leaks == {}
    last.repository.close()


async def test_who_takes_over_says_it_of_what_it_replaced(world):
    Machine(world).share = 0.0
    await world.create("one", dtype="float32")
    creation = Creation("two", a_spec(dtype="float32", max_batch_rows=4), Strategy.RECREATE)
    operation = await world.finish(world.creation.create(creation, Request("", "")))
    assert operation.failure is None
    assert operation.message.startswith("deployments/two serves smol; smol--")
    assert operation.message.endswith("restart Triton")


@pytest.mark.parametrize("why", ["processor", "not loaded"])
async def test_what_cannot_be_seen_is_not_waited_for(world, why):
    there = Machine(world, CPU if why == "processor" else None)
    there.share = 0.0
    await world.create("one", dtype="float32")
    if why == "not loaded":
        world.triton.loaded.clear()
    begin = world.clock.time
    await world.delete(ONE)
    assert world.clock.time == begin
    assert world.book.leaks == {}


async def test_others_on_other_devices_do_not_wait_for_it(world):
    Machine(world).share = 0.0
    await world.create("one", dtype="float32")
    asleep = asyncio.Event()
    world.clock.sleep = lambda seconds: asleep.wait()
    deleting = asyncio.create_task(world.delete(ONE))
    while not world.operations.is_active(ONE):
        await asyncio.sleep(0)
    async with asyncio.timeout(5), world.operations.turns.of(frozenset({"devices/g1"})):
        pass
    assert not deleting.done()
    deleting.cancel()
    await world.operations.close()


def leaked(device: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value("uellm_deployer_leaked_bytes", {"device": device})
