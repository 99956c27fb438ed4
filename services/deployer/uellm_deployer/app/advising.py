"""Use case: find a plan that would be better now. Nothing changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from uellm.rpc.errors import ResourceExhaustedError, UellmError
from uellm_deployer.app.book import Book
from uellm_deployer.app.planning import Planning
from uellm_deployer.domain.advice import Candidate, Cause, Situation, choose
from uellm_deployer.domain.deployment import State, Strategy
from uellm_deployer.domain.performance import rate
from uellm_deployer.domain.placement import KINDS
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec, Objective
from uellm_deployer.domain.recommendation import Recommendation, nothing_better, recommend
from uellm_deployer.domain.topology import Topology

MORE_ROWS = (2, 4, 8)
"""Times the rows of a batch that are tried under load."""
MOST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Advice:
    """What came out: one of both is empty."""

    recommendation: Recommendation | None
    obstacle: str = ""
    """Why there is nothing better, in words."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """A spec that might be better, and how it would be put in place."""

    spec: DeploymentSpec
    strategy: Strategy


@dataclass(slots=True)
class _Found:
    candidates: list[Candidate] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)


class Adviser:
    """Plans what might be better, on the machine as it is and as fast as it was measured."""

    def __init__(self, book: Book, planning: Planning) -> None:
        self._book = book
        self._planning = planning

    async def advise(
        self, situation: Situation, slowness: Mapping[str, float], standing: Recommendation | None
    ) -> Advice:
        """The best change, if one is worth it. `slowness` is of devices, by id; `standing` was recommended before."""
        found = _Found()
        for wish in self._wishes(situation):  # ever larger ones
            if not await self._try(situation, wish, slowness, found):
                break
        if Cause.LOAD in situation.causes or situation.others:
            await self._try_copy(situation, slowness, found)
        chosen = choose(situation, found.candidates, standing.candidate if standing else None)
        if chosen is None:
            return Advice(None, nothing_better(situation, found.candidates, found.obstacles))
        new = recommend(situation, chosen, self._neighbours(situation, chosen))
        return Advice(standing if standing is not None and standing.says(new) else new)

    def _wishes(self, situation: Situation) -> Iterator[_Wish]:
        """What might take the deployment's place. Where others serve the queue, too, it would take theirs as well."""
        if situation.others:
            return
        spec = situation.performance.plan.spec
        if Cause.STEP_TIME in situation.causes:
            yield _Wish(spec, Strategy.BLUE_GREEN)
        if Cause.LOAD in situation.causes:
            if spec.objective is not Objective.LR:
                yield _Wish(replace(spec, objective=Objective.LR), Strategy.BLUE_GREEN)
            for times in MORE_ROWS:
                if (rows := times * spec.max_batch_rows) <= MOST_ROWS:
                    yield _Wish(replace(spec, max_batch_rows=rows), Strategy.BLUE_GREEN)

    async def _try(self, situation: Situation, wish: _Wish, slowness: Mapping[str, float], found: _Found) -> bool:
        """Plan it beside what serves; for load, where there is no room for both, in its place. False: impossible."""
        try:
            plan = await self._plan(situation, wish, slowness)
        except UellmError as error:
            no_room = isinstance(error, ResourceExhaustedError) and wish.strategy is Strategy.BLUE_GREEN
            if no_room and Cause.LOAD in situation.causes:
                return await self._try(situation, replace(wish, strategy=Strategy.RECREATE), slowness, found)
            found.obstacles.append(error.message)
            return False
        found.candidates.append(self._candidate(situation, plan, wish.strategy, slowness))
        return True

    async def _try_copy(self, situation: Situation, slowness: Mapping[str, float], found: _Found) -> None:
        """One more of the same on devices that nothing serves on."""
        spec = situation.performance.plan.spec
        taken = {device for one in self._deployed() for device in one.needs}
        machine = await self._planning.topology()
        free = tuple(
            device.id
            for device in machine.devices
            if device.kind in KINDS and device.id not in taken and device.id in (spec.device_ids or (device.id,))
        )
        if free:
            await self._try(situation, _Wish(replace(spec, device_ids=free), Strategy.BESIDE), slowness, found)
        else:
            found.obstacles.append("no other device is free for a copy beside it")

    async def _plan(self, situation: Situation, wish: _Wish, slowness: Mapping[str, float]) -> DeploymentPlan:
        """The plan as `CreateDeployment` would make it, kept to the devices that are best as they were measured."""
        leaving = [situation.performance.deployment] if wish.strategy is Strategy.RECREATE else []
        machine, spec = await self._planning.available(leaving), wish.spec
        if slowness:
            placed = await self._planning.plan(spec, slowed(machine, slowness), weights_needed=True)
            spec = replace(spec, device_ids=tuple(placed.plan.needs))
        return (await self._planning.plan(spec, machine, weights_needed=True)).plan

    def _candidate(
        self, situation: Situation, plan: DeploymentPlan, strategy: Strategy, slowness: Mapping[str, float]
    ) -> Candidate:
        performance = situation.performance
        seconds = performance.expected_seconds(plan, slowness)
        serving, total = set(plan.needs), rate(plan, seconds)
        staying = list(situation.others)
        if strategy is Strategy.BESIDE and Cause.LOAD in situation.causes:
            staying.append(performance)
        for one in staying if strategy is Strategy.BESIDE else ():
            serving |= one.plan.needs.keys()
            total += one.rate
        return Candidate(plan, strategy, seconds, total, len(serving))

    def _neighbours(self, situation: Situation, chosen: Candidate) -> list[str]:
        name, devices = situation.performance.deployment.name, chosen.plan.needs.keys()
        others = [one for one in self._book.deployments.values() if one.state is not State.FAILED and one.name != name]
        return [one.name for one in others if one.plan.needs.keys() & devices]

    def _deployed(self) -> list[DeploymentPlan]:
        return [one.plan for one in self._book.deployments.values() if one.state is not State.FAILED]


def slowed(machine: Topology, slowness: Mapping[str, float]) -> Topology:
    """The machine with devices that are so many times slower."""
    devices = tuple(
        replace(
            device,
            memory_bandwidth=device.memory_bandwidth / slowness.get(device.id, 1.0),
            flops=device.flops / slowness.get(device.id, 1.0),
        )
        for device in machine.devices
    )
    return replace(machine, devices=devices)
