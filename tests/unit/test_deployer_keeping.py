"""Deleting deployments, restarts of the deployer and of Triton, watching."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from uellm_deployer.app.creation import Creation, Strategy
from uellm_deployer.app.operations import Request
from uellm_deployer.app.ports import JournalEntry
from uellm_deployer.app.unit_of_work import UnitOfWork
from uellm_deployer.domain.deployment import Stage, State

from tests.support.deployer import DeployerWorld, a_spec
from uellm.rpc.errors import (
    AbortedError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from uellm.v1 import deployer_pb2 as pb

ONE, TWO = "deployments/one", "deployments/two"
NO_REQUEST = Request("", "")


@pytest.fixture
def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    yield world
    world.repository.close()


# Deleting.


async def test_delete_leaves_nothing(world):
    await world.create()
    operation = await world.delete(ONE)
    assert (operation.done, operation.failure) == (True, None)
    assert (world.files(), world.triton.loaded, world.publisher.records) == (set(), set(), {})
    assert world.publisher.history[-1] == (ONE, State.DRAINING)
    with pytest.raises(NotFoundError):
        world.book.deployment(ONE)


@pytest.mark.parametrize("who", ["scheduler", "engine"])
async def test_delete_waits_for_what_is_in_flight(world, who):
    await world.create()
    begin = world.clock.time

    def busy() -> bool:
        return world.clock.time < begin + 7

    if who == "scheduler":
        world.publisher.is_drained = lambda: not busy()
    else:
        world.triton.batches_running = lambda name: asyncio.sleep(0, int(busy()))
    operation = await world.delete(ONE)
    assert 7 <= world.clock.time - begin < 8
    assert "cut off" not in operation.message


@pytest.mark.parametrize(("wish", "seconds"), [(None, 60), (3.0, 3), (0.0, 0)])
async def test_draining_is_bounded(world, wish, seconds):
    await world.create()
    world.publisher.is_drained = lambda: False
    begin = world.clock.time
    operation = await world.delete(ONE, wish)
    assert seconds <= world.clock.time - begin < seconds + 1
    assert "cut off" in operation.message
    assert world.triton.loaded == set()


async def test_a_removal_that_fails_is_finished_later(world):
    await world.create()
    world.faults.arm("unload", UnavailableError("Triton is away"))
    assert (await world.delete(ONE)).failure.code == "UNAVAILABLE"
    assert world.book.deployment(ONE).state is State.DELETING
    await world.keeper.repair()
    assert (world.files(), world.triton.loaded, world.book.deployments) == (set(), set(), {})


async def test_a_failed_deployment_can_be_deleted(world):
    world.faults.arm("load", FailedPreconditionError("x", "the reason"))
    await world.create()
    assert (await world.delete(ONE)).failure is None
    assert world.book.deployments == {}


async def test_delete_is_checked(world):
    with pytest.raises(NotFoundError):
        await world.delete(ONE)
    await world.create()
    with pytest.raises(AbortedError, match="etag"):
        await world.deletion.delete(ONE, "old", NO_REQUEST, None)
    await world.deletion.delete(ONE, world.book.deployment(ONE).etag, NO_REQUEST, None)
    with pytest.raises(FailedPreconditionError, match="another operation"):
        await world.deletion.delete(ONE, "", NO_REQUEST, None)
    await asyncio.gather(*world.operations._tasks)


# Restarts.


async def test_after_a_restart_what_serves_is_published_again(world):
    await world.create()
    world.publisher.records.clear()
    world = world.restarted()
    await world.keeper.repair()
    await world.keeper.publish()
    assert world.keeper.settled
    assert world.publisher.records[ONE].state is State.READY
    world.repository.close()


@pytest.mark.parametrize("entry_lost", [False, True])
async def test_what_triton_lost_is_loaded_again(world, entry_lost):
    await world.create()
    name = world.book.deployment(ONE).plan.triton_model
    world = world.restarted()
    world.triton.loaded.clear()
    world.triton._repository = world.repository
    world.publisher.records.clear()
    if entry_lost:
        await world.repository.remove(name)
    await world.keeper.publish()
    assert world.publisher.records == {}  # nobody is sent where nobody answers
    await world.keeper.repair()
    assert world.triton.loaded == {name}
    assert set(world.publisher.records) == {ONE}
    world.repository.close()


async def test_what_cannot_be_loaded_again_has_failed(world):
    await world.create()
    world.triton.loaded.clear()
    world.faults.arm("load", FailedPreconditionError("x", "the weights are gone"))
    await world.keeper.repair()
    deployment = world.book.deployment(ONE)
    assert (deployment.state, world.publisher.records) == (State.FAILED, {})
    assert "the weights are gone" in deployment.failure


@pytest.mark.parametrize("undo_fails", [False, True])
async def test_a_load_that_ends_after_its_time_leaves_nothing_behind(world, undo_fails):
    await world.create()
    world.triton.loaded.clear()
    world.faults.arm("load late", FailedPreconditionError("x", "Triton is still loading", reason="LOAD_TIMEOUT"))
    if undo_fails:
        world.faults.arm("unload", UnavailableError("Triton is away"))
        with pytest.raises(UnavailableError):
            await world.keeper.repair()
    await world.keeper.repair()
    assert (world.files(), world.triton.loaded, world.publisher.records) == (set(), set(), {})
    assert world.book.deployment(ONE).state is State.FAILED
    assert "still loading" in world.book.deployment(ONE).failure


async def test_while_triton_is_away_nothing_is_given_up(world):
    await world.create()
    world.faults.arm("index", UnavailableError("Triton is away"), always=True)
    with pytest.raises(UnavailableError):
        await world.keeper.repair()
    assert world.book.deployment(ONE).state is State.READY


@pytest.mark.parametrize("cut", range(1, 12))
async def test_a_crash_between_any_two_journal_entries_is_repaired(tmp_path, cut):
    """The process dies after any entry; what the journal does not have yet may or may not have been done."""
    world = DeployerWorld(tmp_path)
    first = (tmp_path / "journal" / "journal").stat().st_size
    await world.create()
    deleting = world.deletion.delete(ONE, "", NO_REQUEST, None) if cut > 8 else None
    if deleting:
        await world.finish(deleting)
    path = tmp_path / "journal" / "journal"
    lines = path.read_bytes()[first:].splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:cut]))
    world = world.restarted()
    world.triton._repository = world.repository
    await world.keeper.repair()
    await world.keeper.publish()
    states = {deployment.state for deployment in world.book.deployments.values()}
    assert states <= {State.READY, State.FAILED}
    serving = {d.plan.triton_model for d in world.book.deployments.values() if d.state is State.READY}
    assert world.triton.loaded == serving
    assert {path.name for path in world.repository.models.iterdir()} == serving
    assert len(world.publisher.records) == len(serving)
    assert all(operation.done for operation in world.book.operations.values())
    world.repository.close()


@pytest.mark.parametrize("strategy", [Strategy.BLUE_GREEN, Strategy.RECREATE])
@pytest.mark.parametrize("cut", range(1, 13))
async def test_a_crash_while_one_takes_over_leaves_one_that_serves(tmp_path, strategy, cut):
    world = DeployerWorld(tmp_path)
    await world.create("one")
    path = tmp_path / "journal" / "journal"
    first = path.stat().st_size
    await world.finish(world.creation.create(Creation("two", a_spec(max_batch_rows=4), strategy), NO_REQUEST))
    content = path.read_bytes()
    lines = content[first:].splitlines(keepends=True)
    path.write_bytes(content[:first] + b"".join(lines[:cut]))
    world = world.restarted()
    world.triton._repository = world.repository
    await world.keeper.repair()
    await world.keeper.publish()
    [serving] = [one for one in world.book.deployments.values() if one.state is State.READY]
    assert world.triton.loaded == {serving.plan.triton_model} == world.repository.entries()
    assert {name: one.state for name, one in world.publisher.records.items()} == {serving.name: State.READY}
    newest = list(world.book.operations.values())[-1]
    assert newest.done
    assert (newest.failure is None) == (serving.name == TWO)
    world.repository.close()


async def test_what_goes_goes_before_what_is_loaded_again(world):
    """It may have its memory."""
    await world.create("one")
    one = world.book.deployment(ONE)
    left = replace(one, name=TWO, state=State.CREATING, plan=replace(one.plan, plan_hash="0123456789"))
    await world.book.write(JournalEntry(deployment=left))
    world.triton.loaded = {left.plan.triton_model}
    assert [deployment.name for deployment in await world.keeper.amiss()] == [TWO, ONE]


async def test_an_operation_that_waits_for_its_turn_is_left_alone(world):
    async with world.operations.changing:
        operation = await world.creation.create(Creation("one", a_spec()), NO_REQUEST)
        await world.keeper.repair()
    await asyncio.gather(*world.operations._tasks)
    assert world.book.operation(operation.name).failure is None
    assert world.book.deployment(ONE).state is State.READY


# Reading, watching, and the unit of work by itself.


async def test_watch_shows_every_step_and_ends_with_the_deployment(world):
    operation = await world.creation.create(Creation("one", a_spec()), NO_REQUEST)
    seen: list[tuple[State, Stage, bool]] = []

    async def watch() -> None:
        nonlocal seen
        async for standing in world.book.watch(ONE):
            seen += [(standing.deployment.state, standing.operation.stage, standing.operation.done)]

    watching = asyncio.create_task(watch())
    await asyncio.gather(*world.operations._tasks)
    assert world.book.operation(operation.name).failure is None
    await world.delete(ONE)
    await asyncio.wait_for(watching, 5)
    states = [state for state, *_ in seen]
    assert states == sorted(states, key=list(State).index)
    assert {Stage.LOAD, Stage.VERIFY, Stage.DRAIN} <= {stage for _, stage, _ in seen}
    with pytest.raises(NotFoundError):
        await anext(aiter(world.book.watch(ONE)))


async def test_pages(world):
    for number in (2, 0, 1):
        await world.create(f"p{number}", model=f"m{number}")
    servicer = world.servicer()

    async def page(**request) -> tuple[list[str], str]:
        response = await servicer.ListDeployments(pb.ListDeploymentsRequest(**request), None)
        return [deployment.name for deployment in response.deployments], response.next_page_token

    first, token = await page(page_size=2)
    assert first == ["deployments/p0", "deployments/p1"]
    assert await page(page_size=2, page_token=token) == (["deployments/p2"], "")
    assert (await page())[1] == ""
    for wrong in ({"page_token": "é"}, {"page_token": "x"}, {"page_size": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            await page(**wrong)


async def test_every_undo_is_tried_newest_first():
    done = []

    async def undo(name: str) -> None:
        done.append(name)
        if name == "b":
            raise OSError("no")

    work = UnitOfWork(lambda: undo("begin"))
    async with work:
        for name in "abc":
            work.on_rollback(name, partial(undo, name))
    assert done == ["begin", "c", "b", "a"]
    assert work.left_behind == ["b: no"]


async def test_a_committed_unit_of_work_stays():
    done = []
    async with UnitOfWork(lambda: asyncio.sleep(0)) as work:
        work.on_rollback("a", lambda: asyncio.sleep(0, done.append("a")))
        work.commit()
    assert done == []
