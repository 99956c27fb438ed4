"""Triton restarted by the supervisor that owns it, for a deployer that asks."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
from uellm_deployer.adapters.system_clock import SystemClock
from uellm_deployer.adapters.triton_control import ControlTimes, TritonControl
from uellm_deployer.adapters.triton_host import LocalHost
from uellm_deployer.app.host import RestartTriton
from uellm_deployer.app.keeper import Keeper
from uellm_deployer.app.ports import JournalEntry
from uellm_deployer.app.removal import Removal
from uellm_deployer.domain.deployment import State

from tests.support.deployer import DeployerWorld
from tests.support.triton import start_triton
from uellm.local.state import StateFolder
from uellm.local.supervise import Part, Supervisor
from uellm.local.triton import CONTROL_KEY, EmbeddedTriton

STUCK_MODEL = """
import time

class TritonPythonModel:
    def execute(self, requests):
        return []

    def finalize(self):
        while True:
            time.sleep(1)
"""


class Quiet:
    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@contextlib.contextmanager
def supervised(folder: Path) -> Iterator[tuple[EmbeddedTriton, Part]]:
    """Triton as the part of a stack whose state folder this is."""
    triton = start_triton(folder / "root")
    part = Part("triton", triton.process, triton.address)
    state_folder, ending = StateFolder(folder / "stack"), threading.Event()
    supervisor = Supervisor([part], Quiet(), lambda: None, state_folder)
    with state_folder.held():
        watching = threading.Thread(target=supervisor.watch, args=(ending.is_set,))
        watching.start()
        try:
            yield triton, part
        finally:
            ending.set()
            watching.join()
            triton.stop()


async def test_a_model_that_never_unloads_is_freed_by_the_keeper(tmp_path):
    """Its `finalize` does not end, so that Triton says UNLOADING until it is restarted."""
    with supervised(tmp_path) as (triton, part):
        world = DeployerWorld(tmp_path / "root")
        await world.create("one")
        deployment = world.book.deployment("deployments/one")
        name = deployment.plan.triton_model
        (world.repository.models / name / "1" / "model.py").write_text(STUCK_MODEL)
        async with grpc.aio.insecure_channel(triton.address) as channel:
            secret = triton.options.control_secret
            control = TritonControl(channel, CONTROL_KEY, secret, ControlTimes(unload=0.5))
            clock = SystemClock()
            removal = Removal(world.book, world.repository, control, world.publisher, clock)
            host = LocalHost(tmp_path / "stack", os.environ)
            restart = RestartTriton(world.book, removal, control, world.publisher, host, clock)
            outside = (world.repository, control, world.publisher)
            keeper = Keeper(world.book, world.operations, removal, world.renderer, *outside, restart)
            await control.load(name)
            await world.book.write(JournalEntry(deployment=replace(deployment, state=State.DELETING)))
            await keeper.repair()
            assert part.restarts == 1
            assert (world.book.deployments, world.repository.entries()) == ({}, frozenset())
            assert await control.ready_models() == frozenset()
        world.repository.close()
