"""Take deployments out of service: drain, unload, remove."""

from __future__ import annotations

from dataclasses import replace

from uellm.rpc.errors import AbortedError, FailedPreconditionError
from uellm_deployer.app.book import Book
from uellm_deployer.app.operations import Operations, Progress, Request
from uellm_deployer.app.ports import Clock, JournalEntry, ModelServer, Publisher, Repository
from uellm_deployer.app.turns import things_of
from uellm_deployer.domain.deployment import Deployment, Operation, OperationKind, Stage, State
from uellm_deployer.domain.shares import whole

DRAIN_POLL_SECONDS = 0.1


DEFAULT_DRAIN_SECONDS = 60.0
"""After this a model is unloaded all the same, unless the caller says otherwise."""


class Removal:
    """Drains, unloads and removes."""

    def __init__(
        self, book: Book, repository: Repository, server: ModelServer, publisher: Publisher, clock: Clock
    ) -> None:
        self._book = book
        self._repository = repository
        self._server = server
        self._publisher = publisher
        self._clock = clock
        self.aside: set[str] = set()
        """Deployments that are READY in the journal but make way for another just now."""

    async def remove(
        self, progress: Progress, deployment: Deployment, drain_timeout: float | None = None, replaced_by: str = ""
    ) -> str:
        """The whole way; returns what is to be said of it."""
        drained, deployment = True, replace(deployment, replaced_by=replaced_by)
        if deployment.state is not State.FAILED:
            deployment = replace(deployment, state=State.DRAINING)
            await progress.at(Stage.DRAIN, f"waiting for what is in flight on {deployment.name}", deployment)
            await self.hand_over(deployment)
            drained = await self.drain(deployment, drain_timeout)
        deployment = replace(deployment, state=State.DELETING)
        await progress.at(Stage.UNLOAD, f"unloading {deployment.plan.triton_model}", deployment)
        await self.finish(deployment)
        cut = "" if drained else "; what was still in flight after the drain time-out was cut off"
        return f"{deployment.name} is removed{cut}{self._book.leaked([deployment.plan.triton_model])}"

    async def hand_over(self, leaving: Deployment) -> None:
        """Its share goes to those that serve its queue on, in their proportions. May be repeated."""
        if leaving.replaced_by:
            return  # who took over has it
        queue = leaving.plan.spec.queue
        staying = {
            one.name: one
            for one in self._book.deployments.values()
            if one.state is State.READY and one.plan.spec.queue == queue and one.name != leaving.name
        }
        shares = whole({name: one.traffic_share for name, one in staying.items()}) if staying else {}
        for name, one in staying.items():
            if one.traffic_share != shares[name]:
                await self._book.write(JournalEntry(deployment=replace(one, traffic_share=shares[name])))
                await self._publisher.publish(self._book.deployment(name))

    async def drain(self, deployment: Deployment, limit_seconds: float | None = None) -> bool:
        """Publish DRAINING and wait until nothing is in flight; returns whether that came in time."""
        await self._publisher.publish(replace(deployment, state=State.DRAINING))
        end = self._clock.monotonic() + (DEFAULT_DRAIN_SECONDS if limit_seconds is None else limit_seconds)
        while not await self._is_drained(deployment):
            if self._clock.monotonic() >= end:
                return False
            await self._clock.sleep(DRAIN_POLL_SECONDS)
        return True

    async def _is_drained(self, deployment: Deployment) -> bool:
        """The scheduler's word, and the engine's, which others may use too."""
        drained = await self._publisher.drained(deployment)
        return drained and await self._server.batches_running(deployment.plan.triton_model) == 0

    async def finish(self, deployment: Deployment) -> None:
        """Unload and remove what was drained. May be repeated."""
        await self.dismantle(deployment)
        await self._book.write(JournalEntry(removed=deployment.name))

    async def dismantle(self, deployment: Deployment) -> None:
        """Nothing of the deployment is left in Triton, in the repository, or published. May be repeated."""
        await self._publisher.withdraw(deployment.name)
        await self._server.unload(deployment.plan.triton_model)
        await self._repository.remove(deployment.plan.triton_model)


class DeleteDeployment:
    """Use case: delete a deployment."""

    def __init__(self, book: Book, operations: Operations, removal: Removal) -> None:
        self._book = book
        self._operations = operations
        self._removal = removal

    async def delete(self, name: str, etag: str, request: Request, drain_timeout: float | None) -> Operation:
        """Begin.

        Raises:
            NotFoundError: there is no such deployment.
            AbortedError: it has another etag.
            FailedPreconditionError: another operation on it runs.
            AlreadyExistsError: the request id was used for another request.
        """
        if before := self._operations.repeated(request):
            return before
        deployment = self._book.deployment(name)
        if etag and etag != deployment.etag:
            raise AbortedError(f"{name} has changed: its etag is {deployment.etag}, not {etag}; read it again")
        if self._operations.is_active(name):
            raise FailedPreconditionError(name, f"another operation on {name} runs; wait for its end")

        async def body(progress: Progress) -> str:
            return await self._removal.remove(progress, self._book.deployment(name), drain_timeout)

        return await self._operations.begin(OperationKind.DELETE, name, request, body, things_of(deployment))
