"""Commands of many callers in few round trips."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.exceptions import NoScriptError

from uellm.messaging.connection import RedisClient

MOST_AT_ONCE = 256


class Gathered:
    """Sends commands that are issued while others are on their way together, as one pipeline.

    A caller waits no longer than it would alone; under load a round trip, and what it costs here, is shared. Commands
    are not a transaction. What a caller gets is its own command's answer or error; where the connection breaks, every
    caller of the pipeline gets that error.
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._waiting: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def execute(self, *command: Any) -> Any:
        """The raw answer to a command, as the server gives it."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((command, answer))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await answer

    async def script(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        """The answer of a registered script."""
        try:
            return await self.execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await script(keys=keys, args=args)

    async def _send(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
                values = await self._answers([command for command, _ in batch])
                for (_, answer), value in zip(batch, values, strict=True):
                    if answer.cancelled():
                        continue
                    if isinstance(value, Exception):
                        answer.set_exception(value)
                    else:
                        answer.set_result(value)
        finally:
            self._sender = None

    async def _answers(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for command in commands:
                    pipeline.execute_command(*command)
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
                return answers
        except Exception as error:  # noqa: BLE001  (every caller's)
            return [error] * len(commands)
