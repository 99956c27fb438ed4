"""Many requests over one stream, decided at once, answered as they are decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answer_all(
    requests: AsyncIterable[Request], answer: Callable[[Request], Awaitable[Answer]], in_flight: int
) -> AsyncGenerator[Answer, None]:
    """Yield the answers of all requests, in the order in which they come.

    Between the reading of a request and the taking of its answer lie at most `in_flight`: then no more are read. If
    reading ends with an error, what was read is answered before it is raised. Closed early, what is not decided is
    cancelled. `answer` must not raise.
    """
    room = asyncio.Semaphore(in_flight)
    answers: asyncio.Queue[Answer | None] = asyncio.Queue()

    async def decide(request: Request) -> None:
        answers.put_nowait(await answer(request))

    async def read(deciding: asyncio.TaskGroup) -> Exception | None:
        iterator = aiter(requests)
        while True:
            await room.acquire()
            try:
                request = await anext(iterator)
            except StopAsyncIteration:
                return None
            except Exception as error:  # noqa: BLE001  (raised below)
                return error
            deciding.create_task(decide(request))

    async def run() -> Exception | None:
        try:
            async with asyncio.TaskGroup() as deciding:
                return await read(deciding)
        finally:
            answers.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (answered := await answers.get()) is not None:
            yield answered
            room.release()
    finally:
        if not running.done():
            running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    broken = running.result()
    if broken is not None:
        raise broken
