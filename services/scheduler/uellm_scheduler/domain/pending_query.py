"""A query that waits: what deciding on it needs. Prompt and profile stay in Redis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uellm.v1.query_pb2 import ON_MISS_CANCEL
from uellm.v1.stream_pb2 import Attempt, ProfiledQuery

from .odds import LEVELS, POINTS, TAIL, length_points

NEVER = int(np.iinfo(np.int64).max)
"""A deadline that does not exist, in ms."""
DEFAULT_CONFIDENCE = 0.9


@dataclass(frozen=True, slots=True)
class Progress:
    """What earlier attempts delivered of an answer."""

    token_ids: tuple[int, ...] = ()
    text: str = ""
    first_token_ms: int = 0
    """When the first token was delivered; 0: never."""


NOTHING = Progress()


@dataclass(frozen=True, slots=True)
class Needs:
    """What a query is predicted to need, and by when. Times in ms, by the queue's clock."""

    deadline_ms: int
    """When the whole answer is wanted; `NEVER` without a deadline."""
    first_token_deadline_ms: int
    confidence: float
    cancel_on_miss: bool
    priority: int
    prompt_tokens: int
    length_points: tuple[float, ...]
    """Of the answer, in tokens: `POINTS` lengths of equal weight."""
    length_tail: tuple[float, ...]
    """Its quantiles at `TAIL`."""
    p50_tokens: float
    p90_tokens: float
    p99_tokens: float
    limit_tokens: int
    kv_bytes_p90: int
    kv_bytes_limit: int
    alone_ms: int
    """Median service time when served alone."""

    @classmethod
    def of(cls, arrival_ms: int, query: ProfiledQuery) -> Needs:
        """As the profiler wrote them."""
        profile, slo = query.profile, query.slo
        length = profile.output_length
        quantiles = tuple(length_points(length, (*LEVELS, *TAIL)))
        due = arrival_ms + slo.completion.ToMilliseconds() if slo.HasField("completion") else NEVER
        first_due = arrival_ms + slo.first_token.ToMilliseconds() if slo.HasField("first_token") else NEVER
        return cls(
            deadline_ms=due,
            first_token_deadline_ms=first_due,
            confidence=slo.confidence or DEFAULT_CONFIDENCE,
            cancel_on_miss=slo.on_miss == ON_MISS_CANCEL,
            priority=query.priority,
            prompt_tokens=profile.prompt_tokens,
            length_points=quantiles[:POINTS],
            length_tail=quantiles[POINTS:],
            p50_tokens=length.p50_tokens,
            p90_tokens=length.p90_tokens,
            p99_tokens=length.p99_tokens,
            limit_tokens=length.limit_tokens,
            kv_bytes_p90=profile.kv_cache_bytes_p90,
            kv_bytes_limit=profile.kv_cache_bytes_limit,
            alone_ms=profile.service_time_p50.ToMilliseconds(),
        )


@dataclass(frozen=True, slots=True)
class PendingQuery:
    """One waiting query, as it enters and leaves the table."""

    name: str
    entry_id: str
    """Of the queue; its time is that of acceptance."""
    needs: Needs
    attempts: int = 0
    progress: Progress = NOTHING
    not_before_ms: int = 0
    """Not to be dispatched before, by the queue's clock."""
    history: tuple[Attempt, ...] = ()
    """The attempts that failed, oldest first."""
    alone: bool = False
    """To be served by itself: it may be what ended the engines that it was on."""

    @classmethod
    def of(
        cls,
        name: str,
        entry_id: str,
        query: ProfiledQuery,
        attempts: int = 0,
        progress: Progress = NOTHING,
        history: tuple[Attempt, ...] = (),
    ) -> PendingQuery:
        """As it comes from the queue."""
        needs = Needs.of(arrival_ms(entry_id), query)
        return cls(name, entry_id, needs, attempts, progress, history=history)

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.name.split("/", 2)[1]

    @property
    def arrival_ms(self) -> int:
        """When it was accepted, by the queue's clock."""
        return arrival_ms(self.entry_id)


def arrival_ms(entry_id: str) -> int:
    """When the query of a queue entry was accepted, by the queue's clock."""
    return int(entry_id.split("-", 1)[0])
