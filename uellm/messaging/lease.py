"""One owner per queue, and one of each model's calibration: a Redis lease with a growing epoch.

Writes of an owner carry the epoch, and the scripts refuse all but the newest, so that an owner that was paused past its
lease and revived can do no harm. One lease stands for all entries that its owner holds: they need no renewal
of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import ModelKeys
from uellm.messaging.scripts import Scripts


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was taken."""

    queue: str
    """Name of the queue; of a calibration, its model."""
    epoch: int


def queue_lease(keys: ModelKeys) -> tuple[str, str]:
    """Keys of the lease on a queue: holder and epoch."""
    return keys.owner, keys.owner_epoch


def calibration_lease(keys: ModelKeys) -> tuple[str, str]:
    """Keys of the lease on a model's calibration: holder and epoch."""
    return keys.calibrator, keys.calibrator_epoch


class LeaseKeeper:
    """Takes, renews and gives up leases in the name of one replica."""

    def __init__(
        self,
        redis: RedisClient,
        replica: str,
        time_to_live_ms: int = 5_000,
        lease_keys: Callable[[ModelKeys], tuple[str, str]] = queue_lease,
    ) -> None:
        self._redis = redis
        self._lease_keys = lease_keys
        self._scripts = Scripts(redis)
        self.replica = replica
        self.time_to_live_ms = time_to_live_ms

    async def acquire(self, queue: str) -> Lease | None:
        """Take the lease; None if somebody holds it."""
        taken, value = await self._scripts.acquire(keys=self._keys(queue), args=[self.replica, self.time_to_live_ms])
        return Lease(queue, int(value)) if taken else None

    async def renew(self, lease: Lease) -> bool:
        """Prolong the lease; False if it is lost for good."""
        return bool(
            await self._scripts.renew(
                keys=self._keys(lease.queue), args=[self.replica, lease.epoch, self.time_to_live_ms]
            )
        )

    async def release(self, lease: Lease) -> None:
        """Give the lease up, so that another replica need not wait for its end."""
        await self._scripts.renew(keys=self._keys(lease.queue), args=[self.replica, lease.epoch, 0])

    async def holder(self, queue: str) -> tuple[str, int]:
        """Who holds the lease ("" for nobody), and its newest epoch."""
        owner, epoch = await self._redis.mget(self._keys(queue))
        return (owner or b"").decode(), int(epoch or 0)

    def _keys(self, queue: str) -> list[str]:
        return list(self._lease_keys(ModelKeys.of(queue)))
