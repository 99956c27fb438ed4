"""Long-running operations, those that touch the same devices one at a time; their progress in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

import structlog

from uellm.rpc.errors import AlreadyExistsError, UellmError
from uellm_deployer.app.book import Book
from uellm_deployer.app.ports import Clock, JournalEntry
from uellm_deployer.app.turns import EVERYTHING, Turns
from uellm_deployer.domain.deployment import Deployment, Failure, Operation, OperationKind, Stage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A request that may come twice. Without an id every request is a new one."""

    id: str
    digest: str
    """Of the whole request."""


class Progress:
    """Where a running operation writes how far it is, before it goes there."""

    def __init__(self, book: Book, operation: Operation) -> None:
        self._book = book
        self.operation = operation
        self.failed_in = operation.stage
        """The step before the rollback."""

    async def at(
        self, stage: Stage, message: str, deployment: Deployment | None = None, percent: int | None = None
    ) -> None:
        """The next step, and what the deployment becomes with it."""
        self.operation = self.operation.at(stage, message, percent)
        await self._book.write(JournalEntry(self.operation, deployment))

    async def switched(self, deployment: Deployment, replaces: tuple[str, ...]) -> None:
        """The deployment serves, and those that it replaces are to go: with one entry, whatever happens next."""
        self.operation = replace(self.operation, replaces=replaces)
        await self._book.write(JournalEntry(self.operation, deployment))

    async def roll_back(self) -> None:
        """The step after a failure."""
        self.failed_in = self.operation.stage
        await self.at(Stage.ROLL_BACK, f"undoing what was done: {self.failed_in.value} failed")

    async def done(self, message: str, failure: Failure | None = None) -> None:
        """The end."""
        self.operation = self.operation.ended(message, failure)
        await self._book.write(JournalEntry(self.operation))


Body = Callable[[Progress], Awaitable[str]]
"""What an operation does; returns its last message."""


class Operations:
    """Starts operations; those that share a device or a queue run in the order of their arrival."""

    def __init__(self, book: Book, clock: Clock, new_id: Callable[[], str]) -> None:
        self._book = book
        self._clock = clock
        self._new_id = new_id
        self._active: dict[str, str] = {}  # operation -> deployment
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns = Turns()
        """To be taken by whoever changes Triton or its repository."""

    @property
    def changing(self) -> AbstractAsyncContextManager[None]:
        """For whoever may change anything: no operation runs in the block."""
        return self.turns.of(EVERYTHING)

    def repeated(self, request: Request) -> Operation | None:
        """The operation that the request began before; AlreadyExistsError if it was another request."""
        before = self._book.requested(request.id)
        if before is not None and before.request_digest != request.digest:
            raise AlreadyExistsError(
                "operation", before.name, f"request id {request.id} was used for another request: {before.name}"
            )
        return before

    def is_active(self, deployment: str) -> bool:
        """Whether an operation on the deployment runs or waits for its turn."""
        return deployment in self._active.values()

    async def begin(
        self,
        kind: OperationKind,
        deployment: str,
        request: Request,
        body: Body,
        touched: frozenset[str],
        created: Deployment | None = None,
    ) -> Operation:
        """Note the operation, with the deployment that it creates if it does, and start it in the background.

        It runs behind those that began before it and touch any of the same things.
        """
        name = f"operations/{self._new_id()}"
        operation = Operation(name, kind, deployment, self._clock.now(), request.id, request.digest)
        self._active[name] = deployment  # before it can be seen, lest the keeper takes it for a left-over
        try:
            await self._book.write(JournalEntry(operation, created))
        except BaseException:
            del self._active[name]
            raise
        task = asyncio.create_task(self._run(Progress(self._book, operation), body, touched), name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, name))
        return operation

    async def close(self) -> None:
        """Cancel what runs; it rolls back first."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None], name: str) -> None:
        self._tasks.discard(task)
        del self._active[name]

    async def _run(self, progress: Progress, body: Body, touched: frozenset[str]) -> None:
        operation = progress.operation
        try:
            async with self.turns.of(touched):
                message = await body(progress)
        except asyncio.CancelledError:
            await progress.done("stopped", Failure("ABORTED", "SHUTDOWN", "the deployer was stopped meanwhile"))
            raise
        except UellmError as error:
            log.warning("operation failed", operation=operation.name, reason=error.reason, error=error.message)
            await progress.done("failed", Failure(error.code, error.reason, error.message))
        except Exception:
            log.exception("operation failed", operation=operation.name)
            internal = Failure("INTERNAL", "INTERNAL", f"internal error; see the deployer's log for {operation.name}")
            await progress.done("failed", internal)
        else:
            await progress.done(message)
