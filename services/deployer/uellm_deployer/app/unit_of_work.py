"""Undo what was done, unless it was committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import structlog

log = structlog.get_logger(__name__)


class UnitOfWork:
    """Leaving the block without `commit` undoes its steps, newest first. Every undo is tried.

    A step's undo is registered before the step, since a step that fails may be half done.
    """

    def __init__(self, before_rollback: Callable[[], Awaitable[None]]) -> None:
        self._before_rollback = before_rollback
        self._undos: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self.left_behind: list[str] = []
        """What could not be undone, and why."""

    def on_rollback(self, what: str, undo: Callable[[], Awaitable[None]]) -> None:
        """Register how the next step is undone."""
        self._undos.append((what, undo))

    def commit(self) -> None:
        """What was done stays."""
        self._undos.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undos:
            self.on_rollback("announce the rollback", self._before_rollback)
        while self._undos:
            what, undo = self._undos.pop()
            try:
                await undo()
            except Exception as failure:  # noqa: BLE001 the other steps are undone all the same
                log.warning("step not undone", step=what, error=str(failure))
                self.left_behind.append(f"{what}: {failure}")
