"""Engines under a virtual clock. They compute rows in passes and jump from one end to the next, never token by token.

A pass is a prefill, which yields the first token of each row in it, or a decode step, which yields one of every row
that runs. Between two ends the rows are the same, so that the time of many steps is a sum in closed form
(`uellm.cost.steps`). Times are seconds of the virtual clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from uellm.cost.steps import StepTime
from uellm.v1.stream_pb2 import DecodeAggregate, PrefillAggregate, StepAggregates


@dataclass(slots=True)
class Batch:
    """Rows that were dispatched together."""

    batch_id: str
    number: int
    """Grows from batch to batch."""
    left: int
    """Rows that have not ended."""
    prefill: list[PrefillAggregate] = field(default_factory=list)
    decode: list[DecodeAggregate] = field(default_factory=list)

    def log_prefill(self, rows: Sequence[Row], padded_tokens: int, seconds: float) -> None:
        """Report a pass."""
        tokens = sum(row.context for row in rows)
        self.prefill.append(
            PrefillAggregate(rows=len(rows), tokens=tokens, padded_tokens=padded_tokens, seconds=seconds)
        )

    def log_steps(self, rows: Sequence[Row], steps: int, seconds: float) -> None:
        """Report steps that are about to be made."""
        contexts = [row.context for row in rows]
        if not self.decode or self.decode[-1].rows != len(rows):
            self.decode.append(DecodeAggregate(rows=len(rows), first_context=max(contexts)))
        run = self.decode[-1]
        run.steps += steps
        run.context_tokens += steps * sum(contexts) + len(rows) * steps * (steps - 1) // 2
        run.seconds += seconds

    def aggregates(self) -> StepAggregates:
        """What it cost, as the protocol has it."""
        total = sum(run.seconds for run in self.prefill) + sum(run.seconds for run in self.decode)
        return StepAggregates(prefill=self.prefill, decode=self.decode, total_seconds=total)


@dataclass(slots=True)
class Row:
    """An answer that is being made."""

    name: str
    batch: Batch
    prompt_tokens: int
    total_tokens: int
    """Of the whole answer."""
    made: int = 0
    """Tokens of it that are there, those of earlier attempts included."""
    told: int = 0
    """Of these, how many have left the engine."""

    @property
    def context(self) -> int:
        """Tokens in the cache."""
        return self.prompt_tokens + self.made


@dataclass(frozen=True, slots=True)
class Made:
    """Tokens that left an engine."""

    row: Row
    first_index: int
    count: int
    ended: bool


class Batching(Protocol):
    """What tells engines apart."""

    def admit(self, running: Sequence[Row], waiting: deque[Row]) -> list[Row]:
        """Take the rows that begin now off those that wait."""

    def context_tokens(self, rows: Sequence[Row]) -> int:
        """Context that one decode step of these rows reads, in tokens."""

    def prefill_tokens(self, rows: Sequence[Row]) -> int:
        """Tokens that one prefill of these rows computes."""

    def steps_that_fit(self, rows: Sequence[Row], steps: int, context_tokens: int) -> int:
        """How many of so many steps the cache has room for, the first of which reads so much context."""


class SimulatedEngine:
    """One deployment. Calls are in order of time: `advance(now)` before anything else at `now`."""

    def __init__(self, batching: Batching, step: StepTime) -> None:
        self.batching = batching
        self.step = step
        self.rows: list[Row] = []
        self.waiting: deque[Row] = deque()
        self.busy_seconds = 0.0
        self.preemptions = 0
        self.joining: list[Row] = []
        self._joined_at = math.inf
        """When the prefill under way ends."""
        self._at = 0.0
        """When the pass under way began."""
        self._under_way = False
        """Whether a step has begun that rows which came meanwhile can't join any more."""
        self._came = False
        """Whether rows came that were not looked at yet."""
        self._outlook: tuple[int, int] | None = None
        """Context that the next step reads, and steps until a row ends; None where the rows have changed."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self.rows or self.joining or self.waiting)

    @property
    def next_seconds(self) -> float:
        """When something happens by itself: first tokens, or ends."""
        if self.joining:
            return self._joined_at
        if self._came and not self._under_way:
            return self._at
        if not self.rows:
            return math.inf
        return self._at + self._seconds(self._steps_ahead())

    def start(self, rows: Sequence[Row], now: float) -> None:
        """Rows came; they begin when the batching lets them."""
        if self.idle:
            self._at, self._under_way = now, False
        elif not self.joining and now > self._at:
            self._under_way = True
        self.waiting.extend(rows)
        self._came = True

    def advance(self, now: float) -> list[Made]:
        """Compute up to `now`; returns what was made by passes that ended until then: first tokens and ends."""
        made: list[Made] = []
        while True:
            if self.joining:
                if self._joined_at > now:
                    return made
                made += self._end_prefill()
            elif self.waiting and not self._under_way and self._begin_prefill():
                continue
            elif self.rows:
                steps = min(self._steps_within(now - self._at), self._steps_ahead())
                if not steps:
                    return made
                made += self._make(steps)
            else:
                return made

    def progress(self, least: int = 1) -> list[Made]:
        """What was made since it was told last, of rows that run on, if that is at least so many tokens."""
        return [self._tell(row, ended=False) for row in self.rows if row.made - row.told >= least]

    def cancel(self, names: Collection[str]) -> list[Row]:
        """End rows between two passes; returns those that were there."""
        gone = [row for row in (*self.rows, *self.joining, *self.waiting) if row.name in names]
        self.rows = [row for row in self.rows if row.name not in names]
        self._outlook = None
        self.joining = [row for row in self.joining if row.name not in names]
        self.waiting = deque(row for row in self.waiting if row.name not in names)
        for row in gone:
            row.batch.left -= 1
        return gone

    # --- passes ---

    def _begin_prefill(self) -> bool:
        self._came = False
        self.joining = self.batching.admit(self.rows, self.waiting)
        if not self.joining:
            return False
        padded_tokens = self.batching.prefill_tokens(self.joining)
        seconds = self.step.first_token_seconds(padded_tokens)
        _oldest(self.joining).log_prefill(self.joining, padded_tokens, seconds)
        self._joined_at = self._at + seconds
        self.busy_seconds += seconds
        return True

    def _end_prefill(self) -> list[Made]:
        self._at, joined = self._joined_at, self.joining
        self.joining, self._joined_at, self._under_way = [], math.inf, False
        for row in joined:
            row.made += 1
        self.rows += joined
        made = [self._tell(row, ended=row.made >= row.total_tokens) for row in joined]
        self._leave()
        return made

    def _steps_ahead(self) -> int:
        """Steps until something changes: an end, a row that joins, or a cache that is full."""
        if self._under_way and self.waiting:
            return 1
        context, left = self._look()
        return self.batching.steps_that_fit(self.rows, left, context) or 1

    def _look(self) -> tuple[int, int]:
        if self._outlook is None:
            left = min(row.total_tokens - row.made for row in self.rows)
            self._outlook = self.batching.context_tokens(self.rows), left
        return self._outlook

    def _seconds(self, steps: int) -> float:
        (context, _), rows = self._look(), len(self.rows)
        read = steps * context + rows * steps * (steps - 1) / 2
        return steps * (self.step.base + self.step.per_row * rows) + self.step.per_context_token * read

    def _steps_within(self, seconds: float) -> int:
        """Most whole steps that end within the time."""
        rows = len(self.rows)
        square = self.step.per_context_token * rows / 2
        linear = self._seconds(1) - square
        if seconds <= 0 or square + linear <= 0:
            return 0 if square + linear > 0 else self._steps_ahead()
        steps = (
            (math.sqrt(linear * linear + 4 * square * seconds) - linear) / (2 * square) if square else seconds / linear
        )
        count = max(0, round(steps))
        # Rounding: an end that was told beforehand has to be reached at just that time.
        return count if self._seconds(count) <= seconds + 1e-9 else count - 1 if count else 0

    def _make(self, steps: int) -> list[Made]:
        seconds, (context, left) = self._seconds(steps), self._look()
        _oldest(self.rows).log_steps(self.rows, steps, seconds)
        self._at += seconds
        self.busy_seconds += seconds
        self._under_way = False
        for row in self.rows:
            row.made += steps
        made: list[Made] = []
        if steps < left:
            self._outlook = context + steps * len(self.rows), left - steps
        else:
            made = [self._tell(row, ended=True) for row in self.rows if row.made >= row.total_tokens]
            self._leave()
        if len(self.rows) > 1 and not self.batching.steps_that_fit(self.rows, 1, self._look()[0]):
            self._preempt()
        return made

    def _preempt(self) -> None:
        """The cache is full: who came last goes, and computes what it has again when there is room."""
        row = self.rows.pop()
        self._outlook = None
        self.preemptions += 1
        self.waiting.appendleft(row)

    def _leave(self) -> None:
        """Rows have come, or ended."""
        for row in self.rows:
            if row.made >= row.total_tokens:
                row.batch.left -= 1
        self.rows = [row for row in self.rows if row.made < row.total_tokens]
        self._outlook = None

    def _tell(self, row: Row, *, ended: bool) -> Made:
        made = Made(row, row.told, row.made - row.told, ended)
        row.told = row.made
        return made


def _oldest(rows: Sequence[Row]) -> Batch:
    """Each pass is reported once: by the oldest batch in it."""
    return min((row.batch for row in rows), key=lambda batch: batch.number)
