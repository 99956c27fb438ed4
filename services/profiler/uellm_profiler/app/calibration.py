"""Learn from what completed queries taught: one replica folds each model's observations."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from redis.exceptions import RedisError

from uellm.messaging.connection import raise_if_cancelled
from uellm.messaging.lease import Lease
from uellm_profiler.domain.calibration import CalibrationState, Observed, fold, skip

PAGE = 256
_TURN = 16
"""Observations folded before the event loop goes on: about 2 ms."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Page:
    """Entries of an observation stream, oldest first."""

    entries: Sequence[tuple[str, Observed | None]]
    """Id and observation; None for one that can't be read."""
    gap: bool
    """Whether the entry before the first is not in the stream any more, so that others may be gone, too."""


class LostLeaseError(Exception):
    """Another replica folds the model's observations now."""


class CalibrationStore(Protocol):
    """Where observations and calibrations lie."""

    async def load(self, model: str) -> CalibrationState:
        """The state as it was written last; one that knows nothing if there is none."""

    async def observations(self, model: str, after: str, count: int) -> Page:
        """At most `count` observations after an entry ("" for the first)."""

    async def save(self, model: str, epoch: int, before: CalibrationState, after: CalibrationState) -> bool:
        """Write a state that goes on from another; False, and nothing is written, if that one is not there.

        Raises:
            LostLeaseError: the epoch is not the newest.
        """


class Leases(Protocol):
    """Who may write a model's calibration."""

    async def acquire(self, model: str) -> Lease | None:
        """Take the lease; None if somebody holds it."""

    async def renew(self, lease: Lease) -> bool:
        """Prolong the lease; False if it is lost for good."""

    async def release(self, lease: Lease) -> None:
        """Give the lease up."""


class Calibrator:
    """Folds the observations of every model whose lease is free."""

    def __init__(
        self,
        store: CalibrationStore,
        leases: Leases,
        models: Callable[[], Iterable[str]],
        interval_seconds: float = 0.4,
    ) -> None:
        self._store = store
        self._leases = leases
        self._models = models
        self._interval = interval_seconds
        self._held: dict[str, Lease] = {}
        self._states: dict[str, CalibrationState] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Calibrator]:
        """Learn while the block runs; then give all leases up."""
        task = asyncio.create_task(self._run(), name="calibrator")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(RedisError, OSError):
                for lease in self._held.values():
                    await self._leases.release(lease)

    async def step(self) -> bool:
        """Fold a page of every model that is this replica's; returns whether there is more to fold."""
        more = False
        for model in sorted({*self._models(), *self._held}):
            if await self._hold(model):
                try:
                    more |= await self._fold_page(self._held[model])
                except LostLeaseError:
                    self._drop(model)
        return more

    async def _run(self) -> None:
        while True:
            raise_if_cancelled()
            try:
                more = await self.step()
            except (RedisError, OSError) as error:
                # What was written last is not known: the next step looks.
                self._states.clear()
                log.warning("observations can't be read", error=str(error))
                more = False
            except Exception:
                self._states.clear()
                log.exception("observations can't be folded; trying again")
                more = False
            await asyncio.sleep(0 if more else self._interval)

    async def _hold(self, model: str) -> bool:
        lease = self._held.get(model)
        if lease is not None:
            if await self._leases.renew(lease):
                return True
            self._drop(model)
        lease = await self._leases.acquire(model)
        if lease is None:
            return False
        self._held[model] = lease
        log.info("calibrates", model=model, epoch=lease.epoch)
        return True

    def _drop(self, model: str) -> None:
        lease = self._held.pop(model)
        self._states.pop(model, None)
        log.warning("another replica calibrates", model=model, epoch=lease.epoch)

    async def _fold_page(self, lease: Lease) -> bool:
        model = lease.queue
        before = self._states.get(model)
        if before is None:
            before = await self._store.load(model)
        page = await self._store.observations(model, before.last_entry_id, PAGE)
        self._states[model] = before
        if not page.entries:
            return False
        after = before
        if page.gap:
            after = replace(after, gaps=after.gaps + 1)
            log.warning("observations were gone before they were read", model=model, after=before.last_entry_id)
        for number, (entry_id, observed) in enumerate(page.entries, 1):
            after = skip(after, entry_id) if observed is None else fold(after, observed)
            if number % _TURN == 0:
                await asyncio.sleep(0)
        if await self._store.save(model, lease.epoch, before, after):
            self._states[model] = after
            return len(page.entries) == PAGE
        # Another state is there: a write whose answer was lost, or an older one after a loss of Redis.
        self._states.pop(model)
        return True
