"""Deployments beside each other, and what share of the traffic each has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_deployer import decoding
from uellm_deployer.app.creation import Creation, Strategy
from uellm_deployer.app.operations import Request
from uellm_deployer.app.ports import JournalEntry
from uellm_deployer.domain.deployment import State
from uellm_deployer.domain.shares import whole
from uellm_deployer.encoding import record_message

from tests.support.deployer import DeployerWorld, a_spec
from uellm.rpc.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from uellm.v1 import deployer_pb2 as pb

ONE, TWO = "deployments/one", "deployments/two"


@pytest.fixture
async def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    yield world
    world.repository.close()


async def beside(world: DeployerWorld, name: str = "two", **spec):
    creation = Creation(name, a_spec(max_batch_rows=4, **spec), Strategy.BESIDE)
    return await world.finish(world.creation.create(creation, Request("", "")))


def published(world: DeployerWorld) -> dict[str, float]:
    return {name: record_message(one, "t:1").traffic_share for name, one in world.publisher.records.items()}


async def test_one_beside_another_waits_for_its_share(world):
    await world.create("one")
    operation = await beside(world)
    assert operation.failure is None
    assert {one.state for one in world.book.deployments.values()} == {State.READY}
    assert len(world.triton.loaded) == 2
    assert published(world) == {ONE: 1.0, TWO: 0.0}
    changed = await world.traffic.set("smol", {ONE: 0.9, TWO: 0.1})
    assert [(one.name, one.traffic_share) for one in changed] == [(ONE, 0.9), (TWO, 0.1)]
    assert published(world) == {ONE: 0.9, TWO: 0.1}


async def test_the_first_of_its_queue_has_all_of_it(world):
    await beside(world, "one")
    assert published(world) == {ONE: 1.0}
    await beside(world, "two", queue_shard=1)
    assert published(world) == {ONE: 1.0, TWO: 1.0}
    assert len(await world.traffic.set("smol", {ONE: 1.0, TWO: 1.0})) == 2, "each shard is divided by itself"


async def test_who_replaces_them_replaces_both(world):
    await world.create("one")
    await beside(world)
    await world.traffic.set("smol", {ONE: 0.5, TWO: 0.5})
    await world.create("three", max_batch_rows=2)
    assert published(world) == {"deployments/three": 1.0}


async def test_shares_outlive_a_restart(world):
    await world.create("one")
    await beside(world)
    await world.traffic.set("smol", {ONE: 0.25, TWO: 0.75})
    again = world.restarted()
    again.publisher.records.clear()
    await again.keeper.publish()
    assert published(again) == {ONE: 0.25, TWO: 0.75}
    again.repository.close()


async def test_who_stays_takes_the_share_of_who_is_deleted(world):
    await world.create("one")
    await beside(world)
    await world.delete(ONE)
    assert published(world) == {TWO: 1.0}, "which had none, and is alone now"


async def test_those_who_stay_keep_their_proportions(world):
    await world.create("one")
    await beside(world)
    await beside(world, "three", context_tokens=512)
    await world.traffic.set("smol", {ONE: 0.5, TWO: 0.1, "deployments/three": 0.4})
    await world.delete(ONE)
    assert published(world) == pytest.approx({TWO: 0.2, "deployments/three": 0.8})


async def test_who_stays_takes_the_share_of_who_cannot_be_loaded_again(world):
    await world.create("one")
    await beside(world)
    world.triton.loaded.discard(world.book.deployment(ONE).plan.triton_model)
    world.faults.arm("load", FailedPreconditionError("x", "the weights are gone"))
    await world.keeper.repair()
    assert published(world) == {TWO: 1.0}


async def test_a_share_is_handed_over_after_a_crash_too(world):
    await world.create("one")
    await beside(world)
    await world.book.write(JournalEntry(deployment=replace(world.book.deployment(ONE), state=State.DRAINING)))
    again = world.restarted()
    await again.keeper.repair()
    assert published(again) == {TWO: 1.0}
    again.repository.close()


async def test_the_share_is_that_of_the_moment_it_serves(world):
    await world.create("one")
    async with world.operations.changing:
        await world.deletion.delete(ONE, "", Request("", ""), None)
        creation = Creation("two", a_spec(max_batch_rows=4), Strategy.BESIDE)
        await world.creation.create(creation, Request("", ""))
    await asyncio.gather(*world.operations._tasks)
    assert published(world) == {TWO: 1.0}


@given(st.dictionaries(st.text("ab"), st.floats(0, 1), min_size=1))
def test_shares_are_made_whole_in_their_proportions(shares):
    made = whole(shares)
    assert sum(made.values()) == pytest.approx(1)
    assert whole(made) == pytest.approx(made)
    if (total := sum(shares.values())) > 1e-3:
        assert {name: share * total for name, share in made.items()} == pytest.approx(shares, abs=1e-5)


async def test_what_could_not_be_published_is_later(world):
    await world.create("one")
    await beside(world)
    world.faults.arm("publish", UnavailableError("Redis"))
    with pytest.raises(UnavailableError):
        await world.traffic.set("smol", {ONE: 0.0, TWO: 1.0})
    await world.keeper.publish()
    assert published(world) == {ONE: 0.0, TWO: 1.0}


@pytest.mark.parametrize(
    ("shares", "fields"),
    [
        ({ONE: 1.0}, [f"shares[{TWO}]"]),
        ({ONE: 0.5, TWO: 0.4}, ["shares"]),
        ({ONE: 0.5, TWO: 0.5, "deployments/x": 0.0}, ["shares[deployments/x]"]),
        ({}, [f"shares[{ONE}]", f"shares[{TWO}]"]),
    ],
)
async def test_shares_that_cannot_be(world, shares, fields):
    await world.create("one")
    await beside(world)
    before = published(world)
    with pytest.raises(InvalidArgumentError) as caught:
        await world.traffic.set("smol", shares)
    assert [violation.field for violation in caught.value.violations] == fields
    assert published(world) == before


async def test_a_model_that_is_not_served(world):
    with pytest.raises(NotFoundError):
        await world.traffic.set("smol", {})


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_requests_are_checked(share):
    request = pb.SetTrafficRequest(model="Smol", shares={ONE: share})
    with pytest.raises(InvalidArgumentError) as caught:
        decoding.traffic(request)
    assert [violation.field for violation in caught.value.violations] == ["model", f"shares[{ONE}]"]
