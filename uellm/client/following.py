"""Following the events of a query, also past lost connections. No I/O: both clients share it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from uellm.rpc.errors import UellmError, UnavailableError
from uellm.v1.query_pb2 import Outcome
from uellm.v1.scheduler_pb2 import WatchRequest, WatchResponse, WatchTarget
from uellm.v1.stream_pb2 import Admitted, Batched, Preempted, Restarted, TokenDelta

Event = Admitted | Batched | TokenDelta | Restarted | Preempted | Outcome
"""What `stream` yields; the last one is the outcome. After `Restarted` the text begins anew: see `Transcript`."""

LOST = ("UNAVAILABLE", "CANCELLED")
"""Codes of a connection that broke or of a service that ends; the caller's own cancellation never gets here."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class Patience:
    """Growing pauses between attempts, until so many seconds have passed without success."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._failing_since: float | None = None
        self._pause = FIRST_PAUSE_SECONDS

    def renew(self) -> None:
        """Something succeeded."""
        self._failing_since = None
        self._pause = FIRST_PAUSE_SECONDS

    def pause_after(self, error: UellmError) -> float:
        """Seconds until the next attempt; raises the error if that is no use or the patience is at an end."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if error.code not in LOST or now - self._failing_since + self._pause > self._seconds:
            raise error
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return pause


class Following:
    """Where a stream of events stands."""

    def __init__(self, name: str, patience: Patience) -> None:
        self.finished = False
        """Whether the outcome has come."""
        self._target = WatchTarget(name=name)
        self._patience = patience

    def request(self) -> WatchRequest:
        """Asks for what has not come yet."""
        return WatchRequest(targets=[self._target])

    def take(self, response: WatchResponse) -> Event:
        """The event of a response; from now on the stream goes on after it."""
        self._target.cursor = response.cursor
        self._patience.renew()
        kind = response.event.WhichOneof("event")
        self.finished = kind == "outcome"
        return cast("Event", getattr(response.event, kind))

    def pause_after(self, error: UellmError | None) -> float:
        """Seconds until the next attempt after a stream that ended too early, None: without an error."""
        return self._patience.pause_after(error or UnavailableError("the events ended without an outcome"))


@dataclass(frozen=True, slots=True)
class Ended:
    """A query that ended."""

    name: str
    outcome: Outcome
    cursor: str
    """Watching again with it goes on after this query."""


class FollowingTenant:
    """Where a stream of outcomes stands."""

    def __init__(self, parent: str, cursor: str, patience: Patience) -> None:
        self._request = WatchRequest(parent=parent, cursor=cursor)
        self._patience = patience

    def request(self) -> WatchRequest:
        """Asks for what has not come yet."""
        return self._request

    def take(self, response: WatchResponse) -> Ended | None:
        """The end that a response tells of, if it does; from now on the stream goes on after it."""
        self._request.cursor = response.cursor
        self._patience.renew()
        if response.event.WhichOneof("event") != "outcome":
            return None
        return Ended(response.name, response.event.outcome, response.cursor)

    def pause_after(self, error: UellmError | None) -> float:
        """Seconds until the next attempt after a stream that ended, None: without an error."""
        return self._patience.pause_after(error or UnavailableError("the outcomes ended"))


class Transcript:
    """The answer so far: the text of all deltas that are not void."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, str]] = []

    @property
    def text(self) -> str:
        """Equals the outcome's text once the query has completed."""
        return "".join(text for _, text in self._pieces)

    def add(self, event: Event) -> str:
        """Take an event in; returns the text that it added."""
        if isinstance(event, TokenDelta):
            self._pieces.append((event.first_token_index, event.text))
            return event.text
        if isinstance(event, Restarted):
            self._pieces = [(index, text) for index, text in self._pieces if index < event.resume_index]
        return ""
