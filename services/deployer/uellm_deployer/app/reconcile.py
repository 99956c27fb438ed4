"""Use case: compare journal, repository, Triton and what is published, and repair what differs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from uellm_deployer.app.book import Book
from uellm_deployer.app.host import RestartTriton
from uellm_deployer.app.keeper import Keeper
from uellm_deployer.app.operations import Operations
from uellm_deployer.app.ports import ModelServer, Publisher, Repository
from uellm_deployer.domain.deployment import Deployment, State
from uellm_deployer.domain.names import is_triton_model

_AMISS = {
    State.CREATING: ("was begun and never finished", "undone"),
    State.READY: ("Triton does not serve it", "loaded again"),
    State.DRAINING: ("is half removed", "removed"),
    State.DELETING: ("is half removed", "removed"),
}


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference between what should be and what is."""

    subject: str
    """Deployment or Triton model; `triton`: the process itself."""
    difference: str
    repair: str
    """What was done, or is to be done; empty: nothing."""


Repair = Callable[[], Awaitable[None]]


class Reconcile:
    """What the keeper's rounds look after, and what they do not: entries, loaded models and records of nobody."""

    def __init__(
        self,
        book: Book,
        operations: Operations,
        keeper: Keeper,
        repository: Repository,
        server: ModelServer,
        publisher: Publisher,
        restart: RestartTriton,
    ) -> None:
        self._book = book
        self._operations = operations
        self._keeper = keeper
        self._repository = repository
        self._server = server
        self._publisher = publisher
        self._restart = restart

    async def run(self, *, repair: bool, restart: bool = False) -> list[Drift]:
        """What differed; with `repair` it is put right, one after the other. It waits for operations that run.

        Args:
            repair: else it is only told.
            restart: whether Triton is to be restarted before, whatever serves.

        Raises:
            UnavailableError: Triton, its host or Redis does not answer.
            FailedPreconditionError: its host cannot restart Triton.
        """
        async with self._operations.changing:
            found = [await self._restarted(repair=repair)] if restart else []
            for look in (self._deployments, self._entries, self._models, self._records, self._leaks):
                async for drift, mend in look():
                    if repair:
                        await mend()
                    found.append(drift)
            return found

    async def _restarted(self, *, repair: bool) -> Drift:
        await self._restart.check()
        names = ", ".join(sorted(one.name for one in self._restart.served())) or "nothing"
        if repair:
            await self._restart.restart()
        return Drift("triton", "a restart is asked for", f"restarted; drained before and loaded again: {names}")

    async def _deployments(self) -> AsyncIterator[tuple[Drift, Repair]]:
        for one in await self._keeper.amiss():
            yield Drift(one.name, *_AMISS[one.state]), partial(self._keeper.mend, one)
        for one in self._serving():
            if not self._repository.contains(one.plan.triton_model):
                drift = Drift(one.name, "its repository entry is gone", "written again")
                yield drift, partial(self._write_entry, one)
            elif not await self._keeper.entry_is_sound(one):
                drift = Drift(one.name, "its repository entry was changed", "drained, written again, loaded again")
                yield drift, partial(self._keeper.restore, one)

    async def _entries(self) -> AsyncIterator[tuple[Drift, Repair]]:
        for name in sorted(self._repository.entries() - self._known()):
            drift = Drift(name, "a repository entry of no deployment", "unloaded and removed")
            yield drift, partial(self._discard, name)

    async def _models(self) -> AsyncIterator[tuple[Drift, Repair]]:
        strangers = await self._server.ready_models() - self._known() - self._repository.entries()
        for name in sorted(strangers):
            if is_triton_model(name):
                yield (
                    Drift(name, "Triton serves it, and no deployment has it", "unloaded"),
                    partial(self._server.unload, name),
                )
            else:
                yield Drift(name, "Triton serves a model that is not this deployer's", ""), _nothing

    async def _records(self) -> AsyncIterator[tuple[Drift, Repair]]:
        loaded = await self._server.ready_models()
        wanted = {one.name: one for one in self._serving()}
        for name, difference in (await self._publisher.differing(list(wanted.values()))).items():
            if name in wanted and wanted[name].plan.triton_model not in loaded:
                continue  # is told already, and published once it is loaded
            if name in wanted:
                yield Drift(name, difference, "published again"), partial(self._publisher.publish, wanted[name])
            else:
                yield Drift(name, difference, "withdrawn"), partial(self._publisher.withdraw, name)

    async def _leaks(self) -> AsyncIterator[tuple[Drift, Repair]]:
        for leak in self._book.leaks.values():
            yield Drift(leak.triton_model, leak.difference, ""), _nothing

    def _serving(self) -> list[Deployment]:
        """Those that are wanted to serve."""
        return [one for one in list(self._book.deployments.values()) if one.state is State.READY]

    def _known(self) -> frozenset[str]:
        """Triton models that belong to a deployment. Nothing is left of one that failed."""
        return frozenset(
            one.plan.triton_model for one in self._book.deployments.values() if one.state is not State.FAILED
        )

    async def _write_entry(self, deployment: Deployment) -> None:
        await self._keeper.write_entry(deployment)

    async def _discard(self, name: str) -> None:
        await self._server.unload(name)
        await self._repository.remove(name)


async def _nothing() -> None:
    """Left alone."""
