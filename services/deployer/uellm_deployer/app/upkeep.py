"""The rounds of keeper and monitor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from uellm.rpc.errors import UellmError
from uellm_deployer.app.keeper import Keeper
from uellm_deployer.app.memory import MemoryWatch
from uellm_deployer.app.monitor import Monitor

log = structlog.get_logger(__name__)

PUBLISH_SECONDS = 10.0
"""Consumers distrust a record after 30 s."""

REPAIR_SECONDS = 2.0
RETRY_SECONDS = 0.5


@contextlib.asynccontextmanager
async def upkeep(keeper: Keeper, monitor: Monitor, memory: MemoryWatch) -> AsyncIterator[None]:
    """Repair and publish, look at load and at memory that has come back, again and again while the block runs."""
    rounds = [
        asyncio.create_task(_repeat("repair", keeper.repair, REPAIR_SECONDS)),
        asyncio.create_task(_repeat("publish", keeper.publish, PUBLISH_SECONDS)),
        asyncio.create_task(_repeat("monitor", monitor.look, monitor.interval_seconds)),
        asyncio.create_task(_repeat("memory", memory.look, REPAIR_SECONDS)),
    ]
    try:
        yield
    finally:
        for task in rounds:
            task.cancel()
        await asyncio.gather(*rounds, return_exceptions=True)


async def _repeat(what: str, action: Callable[[], Awaitable[None]], seconds: float) -> None:
    trouble = ""
    while True:
        try:
            await action()
            now = ""
        except UellmError as error:
            now = error.message
        except Exception as error:  # noqa: BLE001 the rounds go on, whatever it is
            now = repr(error)
        if now and now != trouble:
            log.warning("round failed; it is tried again", what=what, error=now)
        trouble = now
        await asyncio.sleep(RETRY_SECONDS if now else seconds)
