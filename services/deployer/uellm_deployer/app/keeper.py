"""Keeps what serves in line with the journal: after a crash of the deployer, of Triton, or of Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from uellm.rpc.errors import FailedPreconditionError, UellmError, UnavailableError
from uellm_deployer.app.book import Book
from uellm_deployer.app.host import RestartTriton
from uellm_deployer.app.operations import Operations
from uellm_deployer.app.ports import UNLOAD_TIMEOUT, JournalEntry, ModelServer, Publisher, Renderer, Repository
from uellm_deployer.app.removal import Removal
from uellm_deployer.app.turns import things_of
from uellm_deployer.domain.deployment import Deployment, Failure, Operation, OperationKind, State

log = structlog.get_logger(__name__)

RESTARTED = Failure(
    "ABORTED", "RESTARTED", "the deployer was restarted meanwhile; what had been done was undone. Begin it again"
)


class Keeper:
    """To be called every few seconds, `repair` and `publish` independently of each other."""

    def __init__(
        self,
        book: Book,
        operations: Operations,
        removal: Removal,
        renderer: Renderer,
        repository: Repository,
        server: ModelServer,
        publisher: Publisher,
        restart: RestartTriton,
    ) -> None:
        self._book = book
        self._operations = operations
        self._removal = removal
        self._renderer = renderer
        self._repository = repository
        self._server = server
        self._publisher = publisher
        self._restart = restart
        self.settled = False
        """Whether everything was in line once since the start."""

    async def publish(self) -> None:
        """Renew the records of what Triton serves now. What it does not serve gets stale by itself."""
        loaded = await self._server.ready_models()
        for name in list(self._book.deployments):
            deployment = self._book.deployments.get(name)  # as it is now: it may have changed during the last one
            if deployment is None:
                continue
            serves = deployment.state in (State.READY, State.DRAINING) and deployment.plan.triton_model in loaded
            if serves and deployment.name not in self._removal.aside:
                await self._publisher.publish(deployment)

    async def repair(self) -> None:
        """Finish or undo what was left half done, and load what Triton has lost. UnavailableError: not possible now."""
        await self._retire()
        found = await asyncio.gather(*map(self._mend_in_turn, await self.amiss()), return_exceptions=True)
        for failure in found:
            if failure is not None:
                raise failure
        await self._close_operations()
        self.settled = True

    async def amiss(self) -> list[Deployment]:
        """Deployments that no operation takes care of and that are not as the journal wants them.

        Those that go come first: what is loaded again may need their memory.
        """
        loaded = await self._server.ready_models()
        found = [
            deployment
            for deployment in list(self._book.deployments.values())
            if not self._operations.is_active(deployment.name)
            and deployment.name not in self._removal.aside
            and deployment.state is not State.FAILED
            and not (deployment.state is State.READY and deployment.plan.triton_model in loaded)
        ]
        return sorted(found, key=lambda deployment: deployment.state is State.READY)

    async def _mend_in_turn(self, deployment: Deployment) -> None:
        try:
            async with self._operations.turns.of(things_of(deployment)):
                if deployment in await self.amiss():  # still, and unchanged
                    await self.mend(deployment)
        except UnavailableError as error:
            if error.reason != UNLOAD_TIMEOUT:
                raise
            async with self._operations.changing:
                await self._mend_by_restart(deployment, error)

    async def _mend_by_restart(self, deployment: Deployment, error: UnavailableError) -> None:
        """With a restart of Triton, where nobody is interrupted by it; else raises the error that led here."""
        if deployment not in await self.amiss():
            return
        if not await self._restart.idle():
            raise error
        try:
            await self._restart.restart()
        except FailedPreconditionError as refusal:
            log.warning("Triton is not restarted", reason=refusal.message)
            raise error from None
        await self.mend(deployment)

    async def mend(self, deployment: Deployment) -> None:
        """Bring one of them in line."""
        if deployment.state is State.CREATING:
            await self._undo(deployment)
        elif deployment.state is State.READY:
            await self._load_again(deployment)
        else:
            await self._finish_removal(deployment)

    async def _undo(self, deployment: Deployment) -> None:
        log.info("undoing an unfinished deployment", deployment=deployment.name)
        await self._removal.dismantle(deployment)
        failed = replace(deployment, state=State.FAILED, failure=deployment.failure or RESTARTED.message)
        await self._book.write(JournalEntry(deployment=failed))

    async def _finish_removal(self, deployment: Deployment) -> None:
        log.info("finishing a removal", deployment=deployment.name)
        if deployment.state is State.DRAINING:
            await self._removal.hand_over(deployment)
            await self._removal.drain(deployment)
        await self._removal.finish(deployment)

    async def _load_again(self, deployment: Deployment) -> None:
        log.info("loading what Triton has lost", deployment=deployment.name)
        plan = deployment.plan
        try:
            deployment = await self.write_entry(deployment)
            await self._repository.touch(plan.triton_model)
            await self._server.load(plan.triton_model)
            await self._server.verify(plan.triton_model, plan.plan_hash)
        except FailedPreconditionError as error:
            await self._give_up(deployment, error)
        else:
            await self._publisher.publish(deployment)

    async def write_entry(self, deployment: Deployment) -> Deployment:
        """Its repository entry, if it is not there as it was written; returns the deployment as it is then."""
        if await self.entry_is_sound(deployment):
            return deployment
        entry = self._renderer.render(deployment.plan)
        await self._repository.stage(entry)
        await self._repository.install(entry.name)
        if deployment.entry_digest != entry.digest:
            await self._book.write(JournalEntry(deployment=replace(deployment, entry_digest=entry.digest)))
        return self._book.deployment(deployment.name)

    async def entry_is_sound(self, deployment: Deployment) -> bool:
        """Whether its repository entry is there, and what was written."""
        found = await self._repository.read(deployment.plan.triton_model)
        return bool(found.files) and deployment.entry_digest in ("", found.digest)

    async def restore(self, deployment: Deployment) -> None:
        """Take it out of service, write its entry again and load that: what is loaded may be what somebody wrote."""
        log.warning("writing a repository entry again, and loading it", deployment=deployment.name)
        self._removal.aside.add(deployment.name)
        try:
            await self._removal.drain(deployment)
            await self._server.unload(deployment.plan.triton_model)
            await self._load_again(deployment)
        finally:
            self._removal.aside.discard(deployment.name)

    async def _give_up(self, deployment: Deployment, error: UellmError) -> None:
        log.error("deployment can't be loaded again", deployment=deployment.name, error=error.message)
        # CREATING until nothing is left: a load that took too long may yet end well, and nobody wants it then.
        undone = replace(deployment, state=State.CREATING, failure=f"could not be loaded again: {error.message}")
        await self._book.write(JournalEntry(deployment=undone))
        await self._removal.hand_over(undone)
        await self._undo(undone)

    async def _retire(self) -> None:
        """What interrupted operations had replaced goes."""
        for operation in self._interrupted():
            for name in operation.replaces:
                old = self._book.deployments.get(name)
                if old is not None and old.state is State.READY and not self._operations.is_active(name):
                    leaving = replace(old, state=State.DRAINING, replaced_by=operation.deployment)
                    await self._book.write(JournalEntry(deployment=leaving))

    async def _close_operations(self) -> None:
        """Operations that a crash interrupted end as what became of their deployment says."""
        for operation in self._interrupted():
            await self._book.write(JournalEntry(self._outcome(operation)))

    def _interrupted(self) -> list[Operation]:
        return [
            operation
            for operation in self._book.operations.values()
            if not operation.done and not self._operations.is_active(operation.deployment)
        ]

    def _outcome(self, operation: Operation) -> Operation:
        deployment = self._book.deployments.get(operation.deployment)
        state = deployment.state if deployment else None
        succeeded = state is (State.READY if operation.kind is OperationKind.CREATE else None)
        if succeeded:
            return operation.ended("finished after a restart", None)
        return operation.ended("interrupted by a restart", RESTARTED)
