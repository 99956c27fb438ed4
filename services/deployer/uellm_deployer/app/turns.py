"""Who needs the same things takes turns; others go side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from uellm_deployer.domain.deployment import Deployment

EVERYTHING = None


@dataclass(eq=False, slots=True)
class _Place:
    things: frozenset[str] | None
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def shares(self, other: _Place) -> bool:
        return self.things is None or other.things is None or not self.things.isdisjoint(other.things)


class Turns:
    """A line in which everybody waits for those before them with whom they share something, and for nobody else."""

    def __init__(self) -> None:
        self._line: list[_Place] = []

    @contextlib.asynccontextmanager
    async def of(self, things: frozenset[str] | None) -> AsyncIterator[None]:
        """Have the things while the block runs; EVERYTHING: alone."""
        place = _Place(things)
        self._line.append(place)
        self._move()
        try:
            await place.reached.wait()
            yield
        finally:
            self._line.remove(place)
            self._move()

    def _move(self) -> None:
        for at, place in enumerate(self._line):
            if not any(map(place.shares, self._line[:at])):
                place.reached.set()


def things_of(*deployments: Deployment) -> frozenset[str]:
    """What changing them touches: the memory of their devices, and who serves their queues."""
    devices = {f"devices/{device}" for one in deployments for device in one.plan.needs}
    queues = {f"queues/{model}/{shard}" for model, shard in (one.plan.spec.queue for one in deployments)}
    return frozenset(devices | queues)
