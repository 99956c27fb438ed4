"""Use case: create a deployment."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial

import structlog

from uellm.rpc.errors import AlreadyExistsError, FailedPreconditionError, UellmError
from uellm_deployer.app.book import Book
from uellm_deployer.app.operations import Operations, Progress, Request
from uellm_deployer.app.planning import Planning
from uellm_deployer.app.ports import Clock, EngineReport, JournalEntry, ModelServer, Publisher, Renderer, Repository
from uellm_deployer.app.removal import Removal
from uellm_deployer.app.turns import things_of
from uellm_deployer.app.unit_of_work import UnitOfWork
from uellm_deployer.domain.deployment import Deployment, Operation, OperationKind, Stage, State, Strategy
from uellm_deployer.domain.names import default_deployment_id
from uellm_deployer.domain.plan import DeploymentPlan, DeploymentSpec

log = structlog.get_logger(__name__)

KV_TOLERANCE = 0.02
"""Share by which the measured cache of a token may differ from the plan, in either direction."""

WEIGHT_TOLERANCE = 0.02
"""Share by which loaded weights may exceed the plan: buffers that are in no checkpoint, such as rotary tables."""

WEIGHT_SLACK_BYTES = 1 << 20
"""On each device, besides."""


@dataclass(frozen=True, slots=True)
class Creation:
    """What is to be created. An empty id is made of the model and the plan."""

    deployment_id: str
    spec: DeploymentSpec
    strategy: Strategy = Strategy.BLUE_GREEN


class CreateDeployment:
    """Plans, writes, loads, verifies and publishes."""

    def __init__(
        self,
        book: Book,
        operations: Operations,
        planning: Planning,
        removal: Removal,
        renderer: Renderer,
        repository: Repository,
        server: ModelServer,
        publisher: Publisher,
        clock: Clock,
    ) -> None:
        self._book = book
        self._operations = operations
        self._planning = planning
        self._removal = removal
        self._renderer = renderer
        self._repository = repository
        self._server = server
        self._publisher = publisher
        self._clock = clock
        self._admitting = asyncio.Lock()

    async def validate(self, creation: Creation) -> Deployment:
        """What would be created; errors as of `create`."""
        leaving = self._predecessors(creation.spec) if creation.strategy is Strategy.RECREATE else []
        placed = await self._planning.plan(creation.spec, leaving=leaving, weights_needed=True)
        deployment_id = creation.deployment_id or default_deployment_id(creation.spec.model, placed.plan.plan_hash)
        name = f"deployments/{deployment_id}"
        self._check_free(name, placed.plan)
        self._renderer.render(placed.plan)
        waits = creation.strategy is Strategy.BESIDE and self._predecessors(creation.spec)
        return Deployment(name, State.CREATING, placed.plan, self._clock.now(), traffic_share=0.0 if waits else 1.0)

    async def create(self, creation: Creation, request: Request) -> Operation:
        """Plan, and begin.

        Raises:
            InvalidArgumentError: the model or the spec is not supported.
            ResourceExhaustedError: it does not fit; the message has the numbers.
            AlreadyExistsError: the name is taken, the plan is deployed, or the request id was used otherwise.
        """
        async with self._admitting:  # between a name's check and its entry in the journal
            if before := self._operations.repeated(request):
                return before
            deployment = await self.validate(creation)

            async def body(progress: Progress) -> str:
                return await self._create(progress, deployment, creation.strategy)

            return await self._operations.begin(
                OperationKind.CREATE, deployment.name, request, body, self._touched(deployment), created=deployment
            )

    def _touched(self, deployment: Deployment) -> frozenset[str]:
        """With what serves the queue, or will before it is this one's turn, and may have to go."""
        queue = deployment.plan.spec.queue
        others = [one for one in self._book.deployments.values() if one.plan.spec.queue == queue]
        return things_of(deployment, *(one for one in others if one.state is not State.FAILED))

    def _check_free(self, name: str, plan: DeploymentPlan) -> None:
        if self._operations.is_active(name):
            raise AlreadyExistsError("deployment", name, f"an operation on {name} runs; wait for its end")
        for other in self._book.deployments.values():
            if other.state is State.FAILED:
                continue
            if other.name == name:
                raise AlreadyExistsError("deployment", name, f"{name} exists; choose another id or delete it first")
            if other.plan.triton_model == plan.triton_model:
                message = f"this very plan is deployed as {other.name}; other rows, context or devices make another one"
                raise AlreadyExistsError("deployment", other.name, message)

    def _predecessors(self, spec: DeploymentSpec, besides: str = "") -> list[Deployment]:
        """Those that serve the same queue."""
        ready = [one for one in self._book.deployments.values() if one.state is State.READY and one.name != besides]
        return [deployment for deployment in ready if deployment.plan.spec.queue == spec.queue]

    async def _create(self, progress: Progress, deployment: Deployment, strategy: Strategy) -> str:
        work = UnitOfWork(progress.roll_back)
        try:
            async with work:
                if strategy is Strategy.RECREATE:
                    await self._clear_the_way(progress, deployment, work)
                await self._put_in_place(progress, deployment, work, replaces=strategy is not Strategy.BESIDE)
        except BaseException as error:
            await self._record_failure(progress, deployment, error, work.left_behind)
            raise
        retired = await self._retire_predecessors(progress, deployment)
        return f"{deployment.name} serves {deployment.plan.spec.model}{self._book.leaked(retired)}"

    async def _put_in_place(
        self, progress: Progress, deployment: Deployment, work: UnitOfWork, *, replaces: bool
    ) -> None:
        plan, name = deployment.plan, deployment.plan.triton_model
        await progress.at(Stage.STAGE, f"writing the repository entry {name}")
        work.on_rollback("remove the repository entry", lambda: self._repository.remove(name))
        entry = self._renderer.render(plan)
        await self._repository.stage(entry)

        await progress.at(Stage.PREFLIGHT, "checking free memory")
        await self._planning.preflight(plan, unloaded=self._removal.aside)

        await progress.at(Stage.LOAD, f"loading {name}")
        await self._repository.install(name)
        work.on_rollback("unload", lambda: self._server.unload(name))
        await self._server.load(name)

        await progress.at(Stage.VERIFY, "comparing what was loaded with the plan; a first inference")
        report = await self._server.verify(name, plan.plan_hash)
        check_report(plan, report)

        await progress.at(Stage.SWITCH, "publishing")
        old = self._predecessors(plan.spec, besides=deployment.name)
        ready = replace(
            deployment,
            state=State.READY,
            measured_kv_bytes_per_token=report.kv_bytes_per_token,
            measured_step_seconds=report.step_seconds,
            measured_kv_budget_bytes=report.kv_budget_bytes,
            entry_digest=entry.digest,
            # Who serves the queue may have changed since it was asked for.
            traffic_share=0.0 if old and not replaces else 1.0,
        )
        work.on_rollback("withdraw", lambda: self._publisher.withdraw(ready.name))
        await self._publisher.publish(ready)
        await progress.switched(ready, tuple(one.name for one in old if replaces))
        work.commit()

    async def _clear_the_way(self, progress: Progress, deployment: Deployment, work: UnitOfWork) -> None:
        """Drain and unload the old ones. They stay in repository and journal, so that they can come back."""
        for old in self._predecessors(deployment.plan.spec, besides=deployment.name):
            await progress.at(Stage.DRAIN, f"waiting for what is in flight on {old.name}", percent=5)
            self._removal.aside.add(old.name)
            work.on_rollback(f"bring back {old.name}", partial(self._bring_back, old))
            await self._removal.drain(old)
            await self._server.unload(old.plan.triton_model)

    async def _bring_back(self, old: Deployment) -> None:
        self._removal.aside.discard(old.name)  # if this fails the keeper goes on with it
        await self._server.load(old.plan.triton_model)
        await self._publisher.publish(old)

    async def _retire_predecessors(self, progress: Progress, deployment: Deployment) -> list[str]:
        """The new one serves: what fails now is left to the keeper, which finishes removals. Returns Triton models."""
        predecessors = [self._book.deployment(name) for name in progress.operation.replaces]
        for old in predecessors:
            try:
                await self._removal.remove(progress, old, replaced_by=deployment.name)
            except UellmError as error:
                log.warning("old deployment not removed yet", deployment=old.name, error=error.message)
            self._removal.aside.discard(old.name)
        return [old.plan.triton_model for old in predecessors]

    async def _record_failure(
        self, progress: Progress, deployment: Deployment, error: BaseException, left_behind: list[str]
    ) -> None:
        """FAILED once all is undone; else CREATING stays, and the keeper goes on undoing."""
        reason = error.message if isinstance(error, UellmError) else type(error).__name__
        state = State.CREATING if left_behind else State.FAILED
        rest = f" Not undone yet: {'; '.join(left_behind)}" if left_behind else ""
        failed = replace(deployment, state=state, failure=f"{progress.failed_in.value}: {reason}{rest}")
        await self._book.write(JournalEntry(deployment=failed))


def check_report(plan: DeploymentPlan, report: EngineReport) -> None:
    """Compare what an engine measured with its plan.

    Raises FailedPreconditionError if a token's cache differs, or if the weights take more.
    """
    facts = plan.facts
    if abs(report.kv_bytes_per_token - facts.kv_bytes_per_token) > KV_TOLERANCE * facts.kv_bytes_per_token:
        raise FailedPreconditionError(
            plan.triton_model,
            f"a token takes {report.kv_bytes_per_token:,} bytes of cache, planned were {facts.kv_bytes_per_token:,}: "
            f"more than {KV_TOLERANCE:.0%} off, so that no plan for this model on this engine holds",
            reason="PLAN_MISMATCH",
        )
    slack = WEIGHT_SLACK_BYTES * len(plan.devices)
    if report.weight_bytes > plan.weight_bytes * (1 + WEIGHT_TOLERANCE) + slack:
        raise FailedPreconditionError(
            plan.triton_model,
            f"the weights take {report.weight_bytes:,} bytes, planned were {plan.weight_bytes:,}",
            reason="PLAN_MISMATCH",
        )
