"""Which queues this replica owns: takes leases, renews them, gives them up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog
from redis.exceptions import RedisError

from uellm.messaging.connection import raise_if_cancelled
from uellm.messaging.keys import MODELS
from uellm.messaging.lease import Lease, LeaseKeeper
from uellm.messaging.queries import FencedError
from uellm.rpc.violations import Violations

from .owner import QueueOwner, Surroundings

log = structlog.get_logger(__name__)


class Ownership:
    """Owns every queue that nobody else owns."""

    def __init__(self, leases: LeaseKeeper, around: Surroundings) -> None:
        self._leases = leases
        self._around = around
        self._owned: dict[str, tuple[QueueOwner, asyncio.Task[None]]] = {}

    def owner(self, model: str) -> QueueOwner | None:
        """The owner of a model's queue, if it is this replica."""
        owned = self._owned.get(model)
        return None if owned is None else owned[0]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Ownership]:
        """Own queues while the block runs; then give all leases up."""
        task = asyncio.create_task(self._run(), name="ownership")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.gather(*(self._give_up(model) for model in list(self._owned)))

    async def _run(self) -> None:
        while True:
            raise_if_cancelled()
            try:
                await self._renew()
                await self._acquire()
            except (RedisError, OSError) as error:
                log.warning("leases can't be renewed", error=str(error))
            except Exception:
                # Without this loop the process would look well and serve nothing.
                log.exception("leases can't be renewed")
            await asyncio.sleep(self._leases.time_to_live_ms / 1000 / 5)

    async def _renew(self) -> None:
        for model, (owner, task) in list(self._owned.items()):
            if task.done() or not await self._leases.renew(owner.lease):
                log.warning("lost a queue", model=model, epoch=owner.lease.epoch)
                await self._stop(model)

    async def _acquire(self) -> None:
        for name in await self._around.redis.smembers(MODELS):
            model = name.decode(errors="replace")
            if model in self._owned or not _is_model(model):
                continue
            lease = await self._leases.acquire(model)
            if lease is not None:
                owner = QueueOwner(lease, self._around)
                self._owned[model] = (owner, asyncio.create_task(_own(owner), name=f"queue {model}"))

    async def _stop(self, model: str) -> Lease:
        owner, task = self._owned.pop(model)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return owner.lease

    async def _give_up(self, model: str) -> None:
        await self._owned[model][0].hand_over()
        lease = await self._stop(model)
        with contextlib.suppress(RedisError, OSError):
            await self._leases.release(lease)


def _is_model(name: str) -> bool:
    violations = Violations()
    violations.model_identifier("model", name)
    return not violations


async def _own(owner: QueueOwner) -> None:
    try:
        await owner.run()
    except* FencedError:
        log.warning("fenced: another replica owns the queue", model=owner.lease.model, epoch=owner.lease.epoch)
    except* Exception:
        log.exception("the owner of a queue failed; another one takes over", model=owner.lease.model)
