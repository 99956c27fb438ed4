"""Returning to the deployment before the last one."""

from __future__ import annotations

from pathlib import Path

import pytest
from uellm_deployer.adapters.journal import FileJournal
from uellm_deployer.app.book import KEPT_FORMER, Book, compacted
from uellm_deployer.app.operations import Request
from uellm_deployer.domain.deployment import State

from tests.support.deployer import DeployerWorld
from uellm.rpc.errors import FailedPreconditionError, NotFoundError, ResourceExhaustedError, UnavailableError

ONE, TWO = "deployments/one", "deployments/two"
NO_REQUEST = Request("", "")


@pytest.fixture
async def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    yield world
    world.repository.close()


async def roll_back(world: DeployerWorld, request: Request = NO_REQUEST):
    return await world.finish(world.rollback.roll_back("smol", request))


async def test_there_and_back(world):
    await world.create("one", max_batch_rows=4)
    first = world.book.deployment(ONE).plan
    await world.create("two", max_batch_rows=2)
    assert list(world.book.deployments) == [TWO]
    operation = await roll_back(world)
    assert (operation.done, operation.failure, operation.deployment) == (True, None, ONE)
    assert list(world.book.deployments) == [ONE]
    assert world.book.deployment(ONE).plan.plan_hash == first.plan_hash
    assert world.triton.loaded == {first.triton_model}
    assert set(world.publisher.records) == {ONE}
    await roll_back(world)
    assert list(world.book.deployments) == [TWO], "and to the one after it"


async def test_what_fails_leaves_what_serves(world):
    await world.create("one", max_batch_rows=4)
    await world.create("two", max_batch_rows=2)
    world.faults.arm("load", FailedPreconditionError("x", "the reason"))
    operation = await roll_back(world)
    assert operation.failure is not None
    assert world.book.deployment(TWO).state is State.READY
    assert world.triton.loaded == {world.book.deployment(TWO).plan.triton_model}
    again = await roll_back(world)
    assert (again.failure, again.deployment) == (None, ONE)


async def test_it_is_remembered_after_restarts(world):
    await world.create("one", max_batch_rows=4)
    await world.create("two", max_batch_rows=2)
    for _ in range(2):  # each start compacts the journal
        world = world.restarted()
        await world.keeper.repair()
    assert (await roll_back(world)).failure is None
    assert list(world.book.deployments) == [ONE]
    world.repository.close()


async def test_a_repeated_request_is_one(world):
    await world.create("one", max_batch_rows=4)
    await world.create("two", max_batch_rows=2)
    request = Request("8f6e1c1e-0000-4000-8000-000000000000", "digest")
    first = await roll_back(world, request)
    assert await roll_back(world, request) == first
    assert list(world.book.deployments) == [ONE]


async def test_what_was_deleted_does_not_come_back(world):
    await world.create("one", max_batch_rows=4)
    await world.delete(ONE)
    await world.create("two", max_batch_rows=2)
    with pytest.raises(FailedPreconditionError) as caught:
        await roll_back(world)
    assert caught.value.reason == "NOTHING_TO_RETURN_TO"
    await world.delete(TWO)
    with pytest.raises(NotFoundError):
        await roll_back(world)


async def test_a_removal_that_the_keeper_finishes_counts(world):
    await world.create("one", max_batch_rows=4)
    world.faults.arm("withdraw", UnavailableError("Redis"))
    await world.create("two", max_batch_rows=2)
    await world.keeper.repair()
    assert list(world.book.deployments) == [TWO]
    assert list(world.book.former) == [ONE]


async def test_a_machine_that_is_too_small_by_now_is_told(world):
    await world.create("one", max_batch_rows=4)
    await world.create("two", max_batch_rows=2)
    world.machine.topology = world.machine.topology.with_promised({"cpu0": 23 << 30})
    with pytest.raises(ResourceExhaustedError):
        await roll_back(world)


async def test_not_everything_is_remembered(world, tmp_path):
    await world.create("one", max_batch_rows=4)
    for number in range(KEPT_FORMER + 3):
        await world.create(f"n{number}", max_batch_rows=8 + number % 2)
    assert len(world.book.former) == KEPT_FORMER
    assert ONE not in world.book.former
    assert Book(FileJournal(tmp_path / "journal", compacted)).former == world.book.former
