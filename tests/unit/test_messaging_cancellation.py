"""A task that reads Redis ends when it is told to, even if the telling meets a time-out."""

from __future__ import annotations

import asyncio

import pytest

from uellm.messaging.connection import raise_if_cancelled


async def test_a_loop_ends_although_a_time_out_swallowed_its_cancellation():
    entered = asyncio.Event()

    async def read() -> None:
        """As redis-py does: the cancellation comes out as a time-out."""
        try:
            entered.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise TimeoutError from None

    async def loop() -> None:
        while True:
            raise_if_cancelled()
            try:
                await read()
            except TimeoutError:
                continue

    task = asyncio.create_task(loop())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), 5)
