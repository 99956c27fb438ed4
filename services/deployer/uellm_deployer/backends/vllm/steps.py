"""Which request reports which step of the engine, and what a step cost.

Rows of many requests share a step, but what a batch cost is reported by request, and the cost model learns from every
report: each step is reported by exactly one, the oldest of those that have a row in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..common.aggregates import StepLog


class Reporting(Protocol):
    """A request that may report steps."""

    @property
    def arrival(self) -> int:
        """Grows from request to request."""

    @property
    def log(self) -> StepLog:
        """What it reports."""


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A row in a step."""

    key: str
    new_tokens: int
    context_tokens: int
    """Behind the step."""
    prefill: bool
    """Whether it reads its prompt, for the first time or again after it was preempted."""


class Steps:
    """Divides a step's time and gives it to one request's log."""

    def __init__(self) -> None:
        self._decode_seconds: float | None = None

    def add(self, rows: Sequence[ScheduledRow], seconds: float, requests: Mapping[str, Reporting]) -> None:
        """Note a step; `requests` by row key.

        Of a step that does both, the decoding rows take as long as in the last step that did nothing else (that part is
        no new measurement and is not reported), and the prefill takes the rest; before there was such a step it is not
        known, and not reported.
        """
        prefill = [row for row in rows if row.prefill]
        decode = [row for row in rows if not row.prefill]
        if not prefill:
            if decode:
                self._decode_seconds = seconds
                contexts = [row.context_tokens for row in decode]
                _oldest(decode, requests).add_step(len(decode), max(contexts), sum(contexts), seconds)
            return
        if decode:
            if self._decode_seconds is None:
                return
            seconds = max(0.0, seconds - self._decode_seconds)
        tokens = sum(row.new_tokens for row in prefill)
        _oldest(prefill, requests).add_prefill(len(prefill), tokens, tokens, seconds)


def _oldest(rows: Sequence[ScheduledRow], requests: Mapping[str, Reporting]) -> StepLog:
    return min((requests[row.key] for row in rows), key=lambda request: request.arrival).log
