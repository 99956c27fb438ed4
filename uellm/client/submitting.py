"""Many submissions over one stream, also past lost connections."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from google.rpc import status_pb2

from uellm.client.requests import Defaults, Prompt, QueryOptions, Submitted, submit_request, submitted
from uellm.rpc.errors import UellmError
from uellm.rpc.status import from_status
from uellm.v1.profiler_pb2 import SubmitStreamRequest, SubmitStreamResponse

WINDOW = 256
"""Submissions without an answer; more are not drawn from what the caller gives."""

Wanted = tuple[Prompt, QueryOptions]
"""A prompt, and what is said about it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How one of many submissions went."""

    index: int
    """Of the submission among those that were given, from 0."""
    result: Submitted | UellmError
    """Accepted, or why not: what `submit` raises."""


class Outbox:
    """What is to be sent, and what has no answer yet. No I/O: both clients share it."""

    def __init__(self, defaults: Defaults, window: int) -> None:
        self.complete = False
        """Whether no more will be added."""
        self.error: BaseException | None = None
        """Why drawing ended early; raised when the rest has its answers."""
        self._defaults = defaults
        self._window = window
        self._added = 0
        self._unanswered: dict[str, SubmitStreamRequest] = {}
        self._unsent: deque[SubmitStreamRequest] = deque()

    @property
    def finished(self) -> bool:
        """Whether everything has its answer."""
        return self.complete and not self._unanswered

    @property
    def has_room(self) -> bool:
        """Whether another one may be added."""
        return len(self._unanswered) < self._window

    def add(self, wanted: Wanted) -> None:
        """Add a submission."""
        prompt, options = wanted
        submit = submit_request(prompt, options, self._defaults)
        request = SubmitStreamRequest(correlation_id=str(self._added), submit=submit)
        self._added += 1
        self._unanswered[request.correlation_id] = request
        self._unsent.append(request)

    def end(self, error: BaseException | None = None) -> None:
        """No more will be added."""
        self.complete, self.error = True, error

    def resend(self) -> None:
        """On a new connection: what has no answer is to be sent again. Ids make sure that nothing is taken twice."""
        self._unsent = deque(self._unanswered.values())

    def next(self) -> SubmitStreamRequest | None:
        """The next to send, if there is one now."""
        return self._unsent.popleft() if self._unsent else None

    def take(self, response: SubmitStreamResponse) -> Answered | None:
        """The answer in a response; None if there was one before."""
        if self._unanswered.pop(response.correlation_id, None) is None:
            return None
        if response.WhichOneof("result") == "accepted":
            return Answered(int(response.correlation_id), submitted(response.accepted))
        status = status_pb2.Status.FromString(response.refused.status)
        return Answered(int(response.correlation_id), from_status(status))


class Feed:
    """Draws from the caller's iterable in a thread, and feeds one connection after the other."""

    def __init__(self, wanted: Iterable[Wanted], outbox: Outbox) -> None:
        self._outbox = outbox
        self._changed = threading.Condition()
        self._connection = 0
        self._thread = threading.Thread(target=self._draw, args=(wanted,), name="submit-many", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether everything has its answer."""
        with self._changed:
            return self._outbox.finished

    def requests(self) -> Iterator[SubmitStreamRequest]:
        """What a new connection sends; the one before sends nothing any more."""
        with self._changed:
            self._connection += 1
            self._outbox.resend()
            self._changed.notify_all()
        return self._requests(self._connection)

    def take(self, response: SubmitStreamResponse) -> Answered | None:
        """See `Outbox`."""
        with self._changed:
            self._changed.notify_all()
            return self._outbox.take(response)

    def close(self) -> None:
        """Nothing is sent or drawn any more."""
        with self._changed:
            self._connection = -1
            self._changed.notify_all()

    def _requests(self, connection: int) -> Iterator[SubmitStreamRequest]:
        while True:
            with self._changed:
                while (request := self._outbox.next() if self._connection == connection else None) is None:
                    if self._connection != connection or self._outbox.complete:
                        return
                    self._changed.wait()
            yield request

    def _draw(self, wanted: Iterable[Wanted]) -> None:
        error: BaseException | None = None
        try:
            for one in wanted:
                with self._changed:
                    self._changed.wait_for(lambda: self._outbox.has_room or self._connection < 0)
                    if self._connection < 0:
                        return
                    self._outbox.add(one)
                    self._changed.notify_all()
        except BaseException as caught:  # noqa: BLE001  (raised where the answers are read)
            error = caught
        with self._changed:
            self._outbox.end(error)
            self._changed.notify_all()


class AsyncFeed:
    """The same for asyncio: draws in a task."""

    def __init__(self, wanted: Iterable[Wanted] | AsyncIterable[Wanted], outbox: Outbox) -> None:
        self._outbox = outbox
        self._changed = asyncio.Event()
        self._connection = 0
        self._task = asyncio.create_task(self._draw(_aiter(wanted)), name="submit-many")

    def requests(self) -> AsyncIterator[SubmitStreamRequest]:
        """What a new connection sends; the one before sends nothing any more."""
        self._connection += 1
        self._outbox.resend()
        self._notify()
        return self._requests(self._connection)

    def take(self, response: SubmitStreamResponse) -> Answered | None:
        """See `Outbox`."""
        self._notify()
        return self._outbox.take(response)

    async def close(self) -> None:
        """Nothing is sent or drawn any more."""
        self._connection = -1
        self._notify()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _requests(self, connection: int) -> AsyncIterator[SubmitStreamRequest]:
        while self._connection == connection:
            changed = self._changed
            request = self._outbox.next()
            if request is not None:
                yield request
            elif self._outbox.complete:
                return
            else:
                await changed.wait()

    async def _draw(self, wanted: AsyncIterator[Wanted]) -> None:
        error: Exception | None = None
        try:
            async for one in wanted:
                while not self._outbox.has_room:
                    await self._changed.wait()
                self._outbox.add(one)
                self._notify()
        except Exception as caught:  # noqa: BLE001  (raised where the answers are read)
            error = caught
        self._outbox.end(error)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def _aiter(wanted: Iterable[Wanted] | AsyncIterable[Wanted]) -> AsyncIterator[Wanted]:
    if isinstance(wanted, AsyncIterable):
        async for one in wanted:
            yield one
    else:
        for one in wanted:
            yield one
