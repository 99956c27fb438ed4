"""Drift between journal, disk, Triton and what is published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from uellm_deployer.app.ports import JournalEntry, RepositoryEntry
from uellm_deployer.app.reconcile import Drift
from uellm_deployer.domain.deployment import State

from tests.support.deployer import DeployerWorld

ONE = "deployments/one"
STRANGER = "ghost--0123456789"


@pytest.fixture
async def world(tmp_path: Path):
    world = DeployerWorld(tmp_path)
    await world.create("one")
    yield world
    world.repository.close()


async def unload(world: DeployerWorld) -> None:
    world.triton.loaded.clear()


async def lose_entry(world: DeployerWorld) -> None:
    shutil.rmtree(world.root / "models" / world.book.deployment(ONE).plan.triton_model)


async def edit_the_engine(world: DeployerWorld) -> None:
    with (world.root / "models" / world.book.deployment(ONE).plan.triton_model / "1" / "model.py").open("a") as file:
        file.write("import os\n")


async def add_a_file(world: DeployerWorld) -> None:
    (world.root / "models" / world.book.deployment(ONE).plan.triton_model / "1" / "sitecustomize.py").touch()


async def empty_redis(world: DeployerWorld) -> None:
    world.publisher.records.clear()


async def publish_otherwise(world: DeployerWorld) -> None:
    world.publisher.records[ONE] = replace(world.publisher.records[ONE], traffic_share=0.5)


async def publish_a_ghost(world: DeployerWorld) -> None:
    world.publisher.records["deployments/ghost"] = replace(world.book.deployment(ONE), name="deployments/ghost")


async def leave_an_entry(world: DeployerWorld) -> None:
    (world.root / "models" / STRANGER).mkdir()
    world.triton.loaded.add(STRANGER)


async def load_a_ghost(world: DeployerWorld) -> None:
    world.triton.loaded.add(STRANGER)


async def half_create(world: DeployerWorld) -> None:
    one = world.book.deployment(ONE)
    plan = replace(one.plan, plan_hash="0123456789")
    await world.book.write(
        JournalEntry(deployment=replace(one, name="deployments/two", state=State.CREATING, plan=plan))
    )


async def half_remove(world: DeployerWorld) -> None:
    await world.book.write(JournalEntry(deployment=replace(world.book.deployment(ONE), state=State.DELETING)))


CHANGED = Drift(ONE, "its repository entry was changed", "drained, written again, loaded again")
DRIFTS = {
    unload: [Drift(ONE, "Triton does not serve it", "loaded again")],
    lose_entry: [Drift(ONE, "its repository entry is gone", "written again")],
    edit_the_engine: [CHANGED],
    add_a_file: [CHANGED],
    empty_redis: [Drift(ONE, "missing", "published again")],
    publish_otherwise: [Drift(ONE, "other", "published again")],
    publish_a_ghost: [Drift("deployments/ghost", "extra", "withdrawn")],
    leave_an_entry: [Drift(STRANGER, "a repository entry of no deployment", "unloaded and removed")],
    load_a_ghost: [Drift(STRANGER, "Triton serves it, and no deployment has it", "unloaded")],
    half_create: [Drift("deployments/two", "was begun and never finished", "undone")],
}


async def test_nothing_differs(world):
    assert await world.reconcile.run(repair=True) == []


@pytest.mark.parametrize("harm", DRIFTS, ids=lambda harm: harm.__name__)
async def test_what_differs_is_told_and_repaired(world, harm):
    before = world.files()
    await harm(world)
    harmed = world.files()
    assert await world.reconcile.run(repair=False) == DRIFTS[harm]
    assert world.files() == harmed, "only told"
    assert await world.reconcile.run(repair=True) == DRIFTS[harm]
    assert await world.reconcile.run(repair=True) == []
    name = world.book.deployment(ONE).plan.triton_model
    assert (world.files(), world.triton.loaded) == (before, {name})
    assert set(world.publisher.records) == {ONE}


async def test_a_changed_entry_is_loaded_anew_behind_what_is_in_flight(world):
    await edit_the_engine(world)
    world.publisher.history.clear()
    loads = []
    load = world.triton.load
    world.triton.load = lambda name: loads.append(name) or load(name)
    await world.reconcile.run(repair=True)
    assert loads == [world.book.deployment(ONE).plan.triton_model]
    assert world.publisher.history == [(ONE, State.DRAINING), (ONE, State.READY)]


async def test_what_triton_lost_is_not_loaded_as_somebody_changed_it(world):
    before = world.files()
    file = world.root / "models" / world.book.deployment(ONE).plan.triton_model / "1" / "model.py"
    sound = file.read_bytes()
    await edit_the_engine(world)
    world.triton.loaded.clear()
    await world.keeper.repair()
    assert (world.files(), file.read_bytes()) == (before, sound)


async def test_another_release_of_the_deployer_is_no_drift(world, monkeypatch):
    """It would write other files; those that lie there are those that were written."""
    render = world.renderer.render
    monkeypatch.setattr(world.renderer, "render", lambda plan: another(render(plan)))
    assert await world.reconcile.run(repair=True) == []
    await edit_the_engine(world)
    assert await world.reconcile.run(repair=True) == [CHANGED]
    assert await world.reconcile.run(repair=True) == []


async def test_a_journal_of_an_older_release_knows_no_digest(world):
    await world.book.write(JournalEntry(deployment=replace(world.book.deployment(ONE), entry_digest="")))
    assert await world.reconcile.run(repair=True) == []


async def test_what_python_compiled_is_no_drift(world):
    folder = world.root / "models" / world.book.deployment(ONE).plan.triton_model / "1" / "__pycache__"
    folder.mkdir()
    (folder / "model.cpython-311.pyc").touch()
    assert await world.reconcile.run(repair=True) == []


def another(entry: RepositoryEntry) -> RepositoryEntry:
    return replace(entry, files={**entry.files, "1/model.py": b"# of another release"})


async def test_all_at_once(world):
    for harm in (lose_entry, empty_redis, leave_an_entry, half_create):
        await harm(world)
    assert len(await world.reconcile.run(repair=True)) == 4
    assert await world.reconcile.run(repair=True) == []


async def test_a_removal_is_finished(world):
    await half_remove(world)
    assert await world.reconcile.run(repair=True) == [Drift(ONE, "is half removed", "removed")]
    assert (world.book.deployments, world.triton.loaded, world.publisher.records) == ({}, set(), {})


async def test_models_of_others_are_left_alone(world):
    world.triton.loaded.add("resnet")
    (world.root / "models" / "resnet").mkdir()
    told = [Drift("resnet", "Triton serves a model that is not this deployer's", "")]
    assert await world.reconcile.run(repair=True) == told
    assert "resnet" in world.triton.loaded
    assert (world.root / "models" / "resnet").is_dir()
