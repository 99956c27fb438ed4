"""Which queues this replica owns: takes leases, renews them, gives them up, so that replicas own about as many each."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import structlog
from redis.exceptions import RedisError

from uellm.messaging.connection import raise_if_cancelled
from uellm.messaging.keys import QUEUES, is_queue_name
from uellm.messaging.lease import Lease, LeaseKeeper
from uellm.messaging.queries import FencedError
from uellm.messaging.replicas import Replicas

from .owner import QueueOwner, Surroundings

log = structlog.get_logger(__name__)

PATIENCE = 3
"""Rounds, of a fifth of a lease each, for which a replica leaves a free queue to those that own fewer, or keeps one too
many: a replica that starts is not a reason to move everything twice."""


class Ownership:
    """Owns its share of the queues, and what nobody else owns."""

    def __init__(self, leases: LeaseKeeper, around: Surroundings) -> None:
        self._leases = leases
        self._around = around
        self._replicas = Replicas(around.redis, leases.replica, leases.time_to_live_ms)
        self._owned: dict[str, tuple[QueueOwner, asyncio.Task[None]]] = {}
        self._leaving: dict[str, asyncio.Task[None]] = {}
        """Queues that are being handed over: until then they are owned."""
        self._left: dict[str, int] = {}
        """For how many rounds each free queue has been left to others."""
        self._over = 0
        """For how many rounds this replica has owned more than its share."""

    def owner(self, queue: str) -> QueueOwner | None:
        """The owner of a queue, if it is this replica."""
        owned = self._owned.get(queue)
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
            with contextlib.suppress(RedisError, OSError):
                await self._replicas.leave()
            staying = [queue for queue in self._owned if queue not in self._leaving]
            leaving = [*self._leaving.values(), *(self._give_up(queue) for queue in staying)]
            await asyncio.gather(*leaving, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            raise_if_cancelled()
            try:
                # Before the leases: a replica that is lost no longer counts when they are free.
                replicas = await self._replicas.count()
                await self._renew()
                queues = await self._queues()
                share = math.ceil(len(queues) / replicas)
                await self._acquire(queues, share)
                self._yield_one(share)
            except (RedisError, OSError) as error:
                log.warning("leases can't be renewed", error=str(error))
            except Exception:
                # Without this loop the process would look well and serve nothing.
                log.exception("leases can't be renewed")
            await asyncio.sleep(self._leases.time_to_live_ms / 1000 / 5)

    async def _renew(self) -> None:
        for queue, (owner, task) in list(self._owned.items()):
            if task.done() or not await self._leases.renew(owner.lease):
                log.warning("lost a queue", queue=queue, epoch=owner.lease.epoch)
                await self._stop(queue)

    async def _queues(self) -> list[str]:
        names = [name.decode(errors="replace") for name in await self._around.redis.smembers(QUEUES)]
        return sorted(name for name in names if is_queue_name(name))

    async def _acquire(self, queues: list[str], share: int) -> None:
        free = [queue for queue in queues if queue not in self._owned and not (await self._leases.holder(queue))[0]]
        self._left = {queue: self._left.get(queue, 0) + 1 for queue in free}
        for queue in free:
            if len(self._owned) >= share and self._left[queue] <= PATIENCE:
                continue
            lease = await self._leases.acquire(queue)
            if lease is not None:
                owner = QueueOwner(lease, self._around)
                self._owned[queue] = (owner, asyncio.create_task(_own(owner), name=f"queue {queue}"))

    def _yield_one(self, share: int) -> None:
        """Give a queue up, the one with least on engines, when others own fewer for some time.

        Beside the loop: what is kept is renewed meanwhile.
        """
        staying = [queue for queue in self._owned if queue not in self._leaving]
        self._over = self._over + 1 if len(staying) > share else 0
        if self._over > PATIENCE:
            self._over = 0
            queue = min(staying, key=lambda name: (len(self._owned[name][0].core.flight), name))
            log.info("left a queue to another replica", queue=queue, owned=len(staying), share=share)
            task = asyncio.create_task(self._give_up(queue), name=f"leave {queue}")
            self._leaving[queue] = task
            task.add_done_callback(lambda _: self._leaving.pop(queue))

    async def _stop(self, queue: str) -> Lease:
        owner, task = self._owned.pop(queue)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return owner.lease

    async def _give_up(self, queue: str) -> None:
        owner, _ = self._owned[queue]
        await owner.hand_over()
        if self.owner(queue) is not owner:
            return  # lost meanwhile
        lease = await self._stop(queue)
        with contextlib.suppress(RedisError, OSError):
            await self._leases.release(lease)


async def _own(owner: QueueOwner) -> None:
    try:
        await owner.run()
    except* FencedError:
        log.warning("fenced: another replica owns the queue", queue=owner.lease.queue, epoch=owner.lease.epoch)
    except* Exception:
        log.exception("the owner of a queue failed; another one takes over", queue=owner.lease.queue)
