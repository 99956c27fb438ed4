"""What became of each request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from uellm.v1.query_pb2 import (
    QUERY_STATE_COMPLETED,
    QUERY_STATE_QUEUED,
    QUERY_STATE_REJECTED,
    QueryState,
)
from uellm_simulator.workload import Request


@dataclass(slots=True)
class Fate:
    """One request. Times are seconds of the virtual clock; infinite: it did not happen."""

    request: Request
    state: QueryState = QUERY_STATE_QUEUED
    deployment: str = ""
    batch_id: str = ""
    dispatch_seconds: float = math.inf
    first_token_seconds: float = math.inf
    finish_seconds: float = math.inf
    output_tokens: int = 0

    @property
    def completed(self) -> bool:
        """Whether there is a whole answer."""
        return self.state == QUERY_STATE_COMPLETED

    @property
    def refused(self) -> bool:
        """Whether it was rejected."""
        return self.state == QUERY_STATE_REJECTED

    @property
    def has_objective(self) -> bool:
        """Whether it had a deadline of any kind."""
        return bool(self.request.completion_seconds or self.request.first_token_seconds)

    @property
    def in_time(self) -> bool:
        """Whether the answer is whole and kept each objective that it had."""
        request = self.request
        return (
            self.completed
            and (not request.completion_seconds or self.latency <= request.completion_seconds)
            and (not request.first_token_seconds or self.first_token <= request.first_token_seconds)
        )

    @property
    def late(self) -> bool:
        """Whether it was served, too late."""
        return self.completed and not self.in_time

    @property
    def latency(self) -> float:
        """Seconds from arrival to the end, of whatever kind."""
        return self.finish_seconds - self.request.arrival.seconds

    @property
    def first_token(self) -> float:
        """Seconds from arrival to the first token."""
        return self.first_token_seconds - self.request.arrival.seconds

    @property
    def wait(self) -> float:
        """Seconds from arrival to dispatch."""
        return self.dispatch_seconds - self.request.arrival.seconds
