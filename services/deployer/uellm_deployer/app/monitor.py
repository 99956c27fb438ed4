"""Use case: watch devices, deployments and load, and say when another plan would be better."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import structlog

from uellm.rpc.errors import UnavailableError
from uellm_deployer.app.advising import Adviser
from uellm_deployer.app.book import Book
from uellm_deployer.app.operations import Operations
from uellm_deployer.app.ports import Clock, ModelServer
from uellm_deployer.app.signals import DeploymentStatus, DeviceUsage, Feedback, Gauges, QueueStatus, UsageSource
from uellm_deployer.domain.advice import Cause, Situation
from uellm_deployer.domain.deployment import Deployment, State
from uellm_deployer.domain.load import Load, Look, load_of
from uellm_deployer.domain.performance import Measurement, Performance, slow_devices

log = structlog.get_logger(__name__)

LONGEST_INTERVAL_SECONDS = 5.0
LOOKS_IN_WINDOW = 10
"""At least."""
ADVICE_IN_WINDOW = 5
"""Times that plans are searched for while a trouble lasts: a search takes up to seconds of a core."""

Queue = tuple[str, int]


@dataclass(slots=True)
class _Watched:
    """What is remembered of a queue."""

    serving: tuple[tuple[str, str, float], ...]
    """Who serves it: names, plans and shares. With others the load counts from the beginning."""
    looks: deque[Look] = field(default_factory=deque)
    load: Load | None = None
    outgrown: bool = False

    def forget_before(self, time: float) -> None:
        """All looks but the last one before that time, and that too if there is none after it."""
        while self.looks and self.looks[min(1, len(self.looks) - 1)].time <= time:
            self.looks.popleft()


@dataclass(slots=True)
class _Case:
    """What is remembered of a deployment."""

    causes: frozenset[Cause] = frozenset()
    advised: float = float("-inf")
    """When plans were searched for."""
    obstacle: str = ""


class Monitor:
    """To be asked to `look` every `interval_seconds`."""

    def __init__(
        self,
        book: Book,
        operations: Operations,
        adviser: Adviser,
        usage: UsageSource,
        server: ModelServer,
        feedback: Feedback,
        gauges: Gauges,
        clock: Clock,
        window_seconds: float,
    ) -> None:
        """`window_seconds` is how long a load must last before anything is concluded from it."""
        self._book = book
        self._operations = operations
        self._adviser = adviser
        self._usage = usage
        self._server = server
        self._feedback = feedback
        self._gauges = gauges
        self._clock = clock
        self._window = window_seconds
        self.interval_seconds = min(LONGEST_INTERVAL_SECONDS, window_seconds / LOOKS_IN_WINDOW)
        self._queues: dict[Queue, _Watched] = {}
        self._cases: dict[str, _Case] = {}

    async def look(self) -> None:
        """Look once at everything. UnavailableError: what the scheduler knows could not be read; the rest is shown."""
        usage, loaded = await self._usage.usage(), await self._loaded()
        measurements: Mapping[str, Measurement] = {}
        try:
            serving = _serving(self._book.deployments.values())
            measurements = await self._feedback.measurements(serving)
            found = await self._feedback.queues({one.plan.spec.queue for one in serving})
            performances = [Performance(one, measurements.get(one.name)) for one in serving]
            self._follow(performances, found)
            await self._advise(performances)
        finally:
            self._show(usage, loaded, measurements)

    async def _loaded(self) -> frozenset[str]:
        try:
            return await self._server.ready_models()
        except UnavailableError:
            return frozenset()

    # --- what is seen ---

    def _follow(self, performances: Sequence[Performance], found: Mapping[Queue, QueueStatus]) -> None:
        """Remember how loaded the queues are."""
        now, watched = self._clock.monotonic(), {}
        for queue, group in _by_queue(performances):
            taking = [one.deployment for one in group if one.deployment.traffic_share > 0]
            who = tuple((one.name, one.plan.plan_hash, one.traffic_share) for one in taking)
            before = self._queues.get(queue)
            watched[queue] = one = before if before is not None and before.serving == who else _Watched(who)
            if queue in found:
                one.looks.append(Look(now, found[queue].waiting, found[queue].work_seconds))
            one.forget_before(now - self._window)
            one.load = load_of(list(one.looks), sum(it.plan.spec.max_batch_rows for it in taking), self._window)
            one.outgrown = one.load is not None and one.load.outgrown(before=one.outgrown)
        self._queues = watched

    def _show(
        self, usage: Iterable[DeviceUsage], loaded: frozenset[str], measurements: Mapping[str, Measurement]
    ) -> None:
        deployments = list(self._book.deployments.values())
        statuses = [
            DeploymentStatus(
                Performance(one, measurements.get(one.name)),
                one.state is State.READY and one.plan.triton_model in loaded,
                self._cases[one.name].causes if one.name in self._cases else frozenset(),
                one.name in self._book.recommendations,
            )
            for one in deployments
        ]
        promised = _promised(deployments)
        devices = [replace(one, promised_bytes=promised.get(one.device.id, 0)) for one in usage]
        offered = {
            queue: one.load.offered
            for queue, one in self._queues.items()
            if one.load is not None and one.load.offered is not None
        }
        self._gauges.show(devices, statuses, offered)

    # --- what follows from it ---

    async def _advise(self, performances: Sequence[Performance]) -> None:
        """Of each deployment on its own; one that is just being changed, or whose queue is, is left alone."""
        slowness = slow_devices(performances)
        self._cases = {one.deployment.name: self._cases.get(one.deployment.name, _Case()) for one in performances}
        for queue, group in _by_queue(performances):
            if any(
                one.plan.spec.queue == queue and (one.state in _CHANGING or self._operations.is_active(one.name))
                for one in self._book.deployments.values()
            ):
                continue
            main = max(group, key=lambda one: (one.deployment.traffic_share, one.deployment.name))
            for one in group:
                load = self._queues[queue].load if one is main and self._queues[queue].outgrown else None
                await self._consider(one, [other for other in group if other is not one], load, slowness)

    async def _consider(
        self, performance: Performance, others: Sequence[Performance], load: Load | None, slowness: Mapping[str, float]
    ) -> None:
        name = performance.deployment.name
        case, now = self._cases[name], self._clock.monotonic()
        used = performance.deployment.traffic_share > 0
        off = used and performance.off_plan(before=Cause.STEP_TIME in case.causes)
        causes = frozenset([Cause.STEP_TIME] * off + [Cause.LOAD] * (load is not None))
        if not causes:
            if case.causes:
                log.info("deployment is right again", deployment=name)
            self._cases[name] = _Case()
            self._book.recommend(name, None)
            return
        if causes == case.causes and now < case.advised + self._window / ADVICE_IN_WINDOW:
            return
        taking = tuple(other for other in others if other.deployment.traffic_share > 0)
        situation = Situation(performance, taking, causes, load)
        advice = await self._adviser.advise(situation, slowness, self._book.recommendations.get(name))
        if advice.recommendation is not None and advice.recommendation != self._book.recommendations.get(name):
            log.warning("another plan would be better", deployment=name, why=advice.recommendation.reason)
        elif advice.obstacle and (case.causes != causes or not case.obstacle):
            log.warning("deployment is off its plan", deployment=name, why=advice.obstacle)
        self._cases[name] = _Case(causes, now, advice.obstacle)
        self._book.recommend(name, advice.recommendation)


_CHANGING = (State.CREATING, State.DRAINING)


def _serving(deployments: Iterable[Deployment]) -> list[Deployment]:
    ready = [one for one in deployments if one.state is State.READY]
    return sorted(ready, key=lambda one: (one.plan.spec.queue, one.name))


def _by_queue(performances: Sequence[Performance]) -> list[tuple[Queue, list[Performance]]]:
    """They are sorted by queue."""
    return [(queue, list(group)) for queue, group in groupby(performances, key=lambda one: one.plan.spec.queue)]


def _promised(deployments: Iterable[Deployment]) -> dict[str, int]:
    """Bytes that deployments need by their plans, by device."""
    promised: dict[str, int] = {}
    for one in deployments:
        if one.state is not State.FAILED:
            for device, needed in one.plan.needs.items():
                promised[device] = promised.get(device, 0) + needed
    return promised
