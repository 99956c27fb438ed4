"""How every process connects to Redis."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

RedisClient: TypeAlias = Any
"""A client as `connect` makes it. redis-py's own annotations cover text and bytes, RESP2 and RESP3 at once, so that
nothing can be said of an answer without a cast; ours are bytes, by RESP2."""

MAX_CONNECTIONS = 128
"""Of one process; who needs one more waits, at most as long as for an answer."""


class _Honest:
    """Mixed into redis-py's connections: uvloop's error for a transport that has closed meanwhile is a RuntimeError."""

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        try:
            await super().send_packed_command(*arguments, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise RedisConnectionError(str(error)) from error

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise RedisConnectionError(str(error)) from error


def connect(url: str, *, timeout_seconds: float = 5.0) -> RedisClient:
    """Open a pool to `redis://`, `rediss://` or `unix://`; raises ValueError for another URL. Connects on first use.

    The client never repeats a command by itself: a script whose answer was lost may have run, and only its caller
    knows whether it can be repeated.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=timeout_seconds,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        socket_keepalive=True,
        health_check_interval=15,
    )
    pool.connection_class = type("Connection", (_Honest, pool.connection_class), {})
    return Redis.from_pool(pool)


def raise_if_cancelled() -> None:
    """Raise CancelledError if the current task was cancelled. For loops around calls of Redis.

    A cancellation that meets a time-out (after a pause of the process, say) comes out of redis-py as a TimeoutError: a
    loop that catches it would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
