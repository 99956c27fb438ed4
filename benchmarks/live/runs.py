"""Sends a workload to a server and notes, by the client's clock, what came when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from workload import Arrival


@dataclass(slots=True)
class Answer:
    """What became of one query; times in seconds from its arrival."""

    arrival: Arrival
    first_token: float | None = None
    end: float | None = None
    tokens: int = 0
    rejected: bool = False
    error: str = ""

    @property
    def completed(self) -> bool:
        """Whether it was answered, in time or late."""
        return self.end is not None and not self.rejected and not self.error

    @property
    def kept(self) -> bool:
        """Whether it was answered within its deadline; without one, whether it was answered."""
        slo = self.arrival.slo_seconds
        return self.completed and (slo is None or (self.end or 0.0) <= slo)


Ask = Callable[[Arrival, "Answer", float], Awaitable[None]]
"""Sends a query and fills the answer in; the float is the monotonic time of its arrival."""


@dataclass(slots=True)
class Run:
    """A workload served once."""

    answers: list[Answer]
    seconds: float
    """From the first arrival to the last answer."""


async def serve(arrivals: Sequence[Arrival], ask: Ask) -> Run:
    """Send each query when its time has come, whatever became of the others."""
    begin = time.monotonic()
    answers = [Answer(arrival) for arrival in arrivals]

    async def one(answer: Answer) -> None:
        due = begin + answer.arrival.at
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await ask(answer.arrival, answer, due)

    await asyncio.gather(*(one(answer) for answer in answers))
    return Run(answers, time.monotonic() - begin)
