"""Keeps a copy of something in Redis fresh, in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NoReturn

import structlog
from redis.exceptions import RedisError

from uellm.messaging.connection import raise_if_cancelled

log = structlog.get_logger(__name__)


@contextlib.asynccontextmanager
async def refreshing(what: str, refresh: Callable[[], Awaitable[None]], interval_seconds: float) -> AsyncIterator[None]:
    """Refresh while the block runs; the first time before it begins, if Redis answers. `what` is for the log."""
    with contextlib.suppress(RedisError, OSError):
        await refresh()
    task = asyncio.create_task(_refresh(what, refresh, interval_seconds), name=what)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _refresh(what: str, refresh: Callable[[], Awaitable[None]], interval_seconds: float) -> NoReturn:
    while True:
        raise_if_cancelled()
        await asyncio.sleep(interval_seconds)
        try:
            await refresh()
        except (RedisError, OSError) as error:
            log.warning("what is followed can't be read", what=what, error=str(error))
        except Exception:
            # Nobody would notice that it has ended.
            log.exception("what is followed makes no sense", what=what)
