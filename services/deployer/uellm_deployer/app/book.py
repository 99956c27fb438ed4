"""Deployments and operations: the journal folded, kept in memory, watched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace

from uellm.rpc.errors import NotFoundError
from uellm_deployer.app.ports import Journal, JournalEntry
from uellm_deployer.domain.deployment import Deployment, Operation
from uellm_deployer.domain.leak import Leak
from uellm_deployer.domain.recommendation import Recommendation

KEPT_OPERATIONS = 256
"""Finished operations that are remembered, so that a repeated request is recognised."""
KEPT_FORMER = 64
"""Replaced deployments that are remembered, of all models, so that they can come back."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A deployment, the newest operation on it, if any is remembered, and what would be better now, if anything."""

    deployment: Deployment
    operation: Operation | None
    recommendation: Recommendation | None = None


class Book:
    """What there is. Every change goes to the journal first."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._changed = asyncio.Event()
        self._writing = asyncio.Lock()
        self._closed = False
        self.deployments: dict[str, Deployment] = {}
        self.operations: dict[str, Operation] = {}
        self.former: dict[str, Deployment] = {}
        """Those that were replaced and are gone, the last ones, oldest first."""
        self.recommendations: dict[str, Recommendation] = {}
        """By resource name; found anew after a start, so not in the journal."""
        self.leaks: dict[tuple[str, str], Leak] = {}
        """Memory that did not come back, by Triton model and device."""
        for entry in journal.entries():
            self._apply(entry)

    async def write(self, entry: JournalEntry) -> None:
        """Write the entry to the journal, then make it so."""
        async with self._writing:  # the journal's order is the order of the changes
            if entry.deployment is not None:
                entry = replace(entry, deployment=self._revised(entry.deployment))
            await self._journal.append(entry)
            self._apply(entry)
        self._wake()

    def recommend(self, name: str, recommendation: Recommendation | None) -> None:
        """Keep what would be better than a deployment, None: nothing; who watches it is told of a change."""
        if self.recommendations.get(name) != recommendation:
            self.recommendations.pop(name, None)
            if recommendation is not None and name in self.deployments:
                self.recommendations[name] = recommendation
            self._wake()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    def deployment(self, name: str) -> Deployment:
        """The deployment of that resource name; NotFoundError if there is none."""
        if name not in self.deployments:
            raise NotFoundError("deployment", name)
        return self.deployments[name]

    def operation(self, name: str) -> Operation:
        """The operation of that name; NotFoundError if there is none, or it was long ago."""
        if name not in self.operations:
            raise NotFoundError("operation", name)
        return self.operations[name]

    def leaked(self, triton_models: Iterable[str]) -> str:
        """What is to be added to a message about these models: nothing, or what they leak."""
        models = set(triton_models)
        return "".join(
            f"; {one.triton_model} {one.difference}" for one in self.leaks.values() if one.triton_model in models
        )

    def requested(self, request_id: str) -> Operation | None:
        """The operation that a request id began."""
        return next((op for op in self.operations.values() if request_id and op.request_id == request_id), None)

    def standing(self, name: str) -> Standing:
        """A deployment with its newest operation; NotFoundError if there is none."""
        deployment = self.deployment(name)
        newest = next((op for op in reversed(self.operations.values()) if op.deployment == name), None)
        return Standing(deployment, newest, self.recommendations.get(name))

    async def watch(self, name: str) -> AsyncIterator[Standing]:
        """A deployment now and after every change, until it is gone or `close`; NotFoundError if there is none."""
        seen: Standing | None = None
        self.deployment(name)
        while name in self.deployments and not self._closed:
            changed = self._changed
            if (now := self.standing(name)) != seen:
                seen = now
                yield now
            else:
                await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _revised(self, deployment: Deployment) -> Deployment:
        before = self.deployments.get(deployment.name)
        return replace(deployment, revision=before.revision + 1 if before else deployment.revision + 1)

    def _apply(self, entry: JournalEntry) -> None:
        fold(self.deployments, self.former, self.operations, self.leaks, entry)
        self.recommendations.pop(entry.removed, None)


def fold(
    deployments: dict[str, Deployment],
    former: dict[str, Deployment],
    operations: dict[str, Operation],
    leaks: dict[tuple[str, str], Leak],
    entry: JournalEntry,
) -> None:
    """Make one entry so; forgets the oldest finished operations and replaced deployments."""
    if entry.leak is not None:
        leaks.pop((entry.leak.triton_model, entry.leak.device_id), None)
        if entry.leak.lost_bytes:
            leaks[entry.leak.triton_model, entry.leak.device_id] = entry.leak
    if entry.deployment is not None:
        deployments[entry.deployment.name] = entry.deployment
    if entry.removed:
        gone = deployments.pop(entry.removed, None)
        if gone is not None and gone.replaced_by:
            former.pop(gone.name, None)
            former[gone.name] = gone
            for name in list(former)[:-KEPT_FORMER]:
                del former[name]
    if entry.operation is not None:
        operations[entry.operation.name] = entry.operation
        finished = [name for name, operation in operations.items() if operation.done]
        for name in finished[:-KEPT_OPERATIONS]:
            del operations[name]


def compacted(entries: Iterable[JournalEntry]) -> list[JournalEntry]:
    """The shortest journal with the same content."""
    deployments: dict[str, Deployment] = {}
    former: dict[str, Deployment] = {}
    operations: dict[str, Operation] = {}
    leaks: dict[tuple[str, str], Leak] = {}
    for entry in entries:
        fold(deployments, former, operations, leaks, entry)
    return [
        *(JournalEntry(deployment=deployment, removed=deployment.name) for deployment in former.values()),
        *(JournalEntry(deployment=deployment) for deployment in deployments.values()),
        *(JournalEntry(operation=operation) for operation in operations.values()),
        *(JournalEntry(leak=leak) for leak in leaks.values()),
    ]
