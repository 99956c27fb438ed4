"""Use case: plan a deployment. Nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from uellm.rpc.errors import ResourceExhaustedError
from uellm_deployer.app.book import Book
from uellm_deployer.app.ports import ModelLibrary, TopologySource
from uellm_deployer.domain.deployment import Deployment, State
from uellm_deployer.domain.facts import refusal
from uellm_deployer.domain.fleet.fleet import Fleet, Member, Wanted, naming, plan_fleet
from uellm_deployer.domain.placement import Placed, Planner
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec
from uellm_deployer.domain.topology import Topology


class Planning:
    """Plans for this machine as it is now, or for another."""

    def __init__(self, book: Book, source: TopologySource, library: ModelLibrary, planner: Planner) -> None:
        self._book = book
        self._source = source
        self._library = library
        self._planner = planner
        self._before_load: dict[str, dict[str, int]] = {}  # Triton model -> bytes that were free, by device

    async def topology(self) -> Topology:
        """The machine as it is now; its warnings name the memory that unloads did not give back."""
        found = await self._source.read()
        leaks = [f"{leak.triton_model} {leak.difference}" for leak in self._book.leaks.values()]
        return replace(found, warnings=(*found.warnings, *leaks))

    async def available(self, leaving: Iterable[Deployment] = ()) -> Topology:
        """The machine as `plan` sees it: less what the deployments on it may grow into."""
        return await self._available(list(leaving))

    async def plan(
        self,
        spec: DeploymentSpec,
        machine: Topology | None = None,
        leaving: Iterable[Deployment] = (),
        *,
        weights_needed: bool = False,
    ) -> Placed:
        """Plan.

        Args:
            spec: what is wanted.
            machine: plan for this one, taken as it is; None: for the real one.
            leaving: deployments whose memory will be free again.
            weights_needed: whether the plan is to be carried out, so that the config alone is not enough.

        Raises:
            InvalidArgumentError: the model or the spec is not supported.
            ResourceExhaustedError: it does not fit; the message has the numbers.
        """
        shape = await self._library.shape(spec.weights_path)
        if weights_needed and not shape.has_weights:
            raise refusal(f"{spec.weights_path} has a config, but no model.safetensors or model.safetensors.index.json")
        topology = machine or await self._available(list(leaving))
        # In a thread: a search may take seconds, in which others are to be answered.
        return await asyncio.to_thread(self._planner.place, spec, shape, topology)

    async def what_if(self, placed: Placed) -> tuple[str, ...]:
        """In words: what one more device of each sort, or faster links, would give."""
        return await asyncio.to_thread(self._planner.what_if, placed)

    async def plan_fleet(self, wanted: Sequence[Wanted], machine: Topology | None = None) -> Fleet:
        """Plan several models at once, beside what is deployed; errors as of `domain.fleet.fleet.plan_fleet`."""
        members = []
        for number, one in enumerate(wanted):
            with naming(number, one.spec.model):
                members.append(Member(one, await self._library.shape(one.spec.weights_path)))
        there = [] if machine else [one for one in self._book.deployments.values() if one.state is not State.FAILED]
        topology = machine or await self._available([])
        deployed = [one.plan.spec for one in there]
        return await asyncio.to_thread(plan_fleet, self._planner, members, topology, deployed)

    async def preflight(self, plan: DeploymentPlan, unloaded: Collection[str]) -> None:
        """Check once more that the plan fits, beside what is loaded; ResourceExhaustedError with the numbers.

        `unloaded` are the resource names of deployments that are not loaded though the journal has them as READY.
        """
        loaded = [
            deployment
            for deployment in self._book.deployments.values()
            if deployment.state not in (State.CREATING, State.FAILED) and deployment.name not in unloaded
        ]
        found = await self._source.read()
        self._before_load[plan.triton_model] = {device.id: device.free_memory_bytes for device in found.devices}
        topology = found.with_promised(_growth(loaded))
        for device_id, needed in plan.needs.items():
            device = topology.device(device_id)
            free = device.free_memory_bytes if device else 0
            if needed > free:
                raise ResourceExhaustedError(
                    f"devices/{device_id}",
                    f"{device_id} has {free:,} bytes left, the plan needs {needed:,}: something else took memory since "
                    "it was made",
                    reason="OUT_OF_DEVICE_MEMORY",
                )

    async def _available(self, leaving: Sequence[Deployment]) -> Topology:
        """The machine less what the deployments on it may grow into; those that leave give back their weights."""
        names = {deployment.name for deployment in leaving}
        staying = [deployment for deployment in self._book.deployments.values() if deployment.name not in names]
        topology = await self._source.read()
        changes = _growth(staying)
        self._count_once(changes, staying, topology)
        for deployment in leaving:
            for stage in deployment.plan.stages:
                for device in stage.device_ids:
                    changes[device] = changes.get(device, 0) - stage.weight_bytes
        return topology.with_promised(changes)

    def _count_once(self, growth: dict[str, int], deployments: Iterable[Deployment], topology: Topology) -> None:
        """Weights that are being loaded show as used already, so far: take them off what is still to come."""
        creating = [one for one in deployments if one.state is State.CREATING]
        models = {one.plan.triton_model for one in creating}
        self._before_load = {name: free for name, free in self._before_load.items() if name in models}
        for one in creating:
            before = self._before_load.get(one.plan.triton_model, {})
            for stage in one.plan.stages:
                for device_id in stage.device_ids:
                    device = topology.device(device_id)
                    taken = before.get(device_id, 0) - (device.free_memory_bytes if device else 0)
                    growth[device_id] -= min(max(0, taken), stage.weight_bytes)


def _growth(deployments: Iterable[Deployment]) -> dict[str, int]:
    """Bytes that deployments may yet take, by device: what is loaded shows as used, cache and activations grow."""
    growth: dict[str, int] = {}
    for deployment in deployments:
        if deployment.state is State.FAILED:
            continue
        for stage in deployment.plan.stages:
            weights = stage.weight_bytes if deployment.state is State.CREATING else 0
            for device in stage.device_ids:
                growth[device] = growth.get(device, 0) + weights + stage.kv_bytes + stage.reserve_bytes
    return growth
