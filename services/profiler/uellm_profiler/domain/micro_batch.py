"""Which prompts a predictor computes together: calls wait here until the one worker is free. No I/O, no clock.

A batch is padded to its longest prompt, so prompts of similar length go together, around the one that has waited
longest. Interactive prompts go before bulk ones; no interactive prompt waits for more than one bulk batch, and bulk
prompts are not starved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.domain.predictor import LengthModel, PredictorInput, Urgency

_SHORT_TOKENS = 32
"""Shorter prompts count as this long: they cost about the same."""
_SPREAD = 2
"""The longest prompt of a batch counts at most this many times the shortest."""
_SMOOTHING = 0.2
"""Weight of the newest batch in the measured rate."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of batches and of what waits."""

    prompts: int = 32
    """Of one batch."""
    tokens: int = 2_048
    """Of one batch, padding included; a longer prompt goes alone."""
    read_tokens: int = 256
    """Longer prompts count as this long: predictors read no more of them."""
    interactive_waiting: int = 256
    """Interactive prompts that may wait."""
    bulk_waiting: int = 2_048
    """Bulk prompts that may wait."""
    bulk_patience_seconds: float = 2.0
    """After so long without any, one bulk batch goes before interactive prompts."""

    def waiting(self, urgency: Urgency) -> int:
        """Prompts that may wait."""
        return self.interactive_waiting if urgency is Urgency.INTERACTIVE else self.bulk_waiting


@dataclass(slots=True, eq=False)
class Call:
    """Prompts that one caller wants predicted by one model."""

    model: LengthModel
    prompts: Sequence[PredictorInput]
    urgency: Urgency
    arrival: float
    """In seconds."""
    lengths: dict[int, LengthDistribution] = field(default_factory=dict)
    """What was predicted so far, by index."""

    @property
    def complete(self) -> bool:
        """Whether every prompt has its prediction."""
        return len(self.lengths) == len(self.prompts)


@dataclass(slots=True, eq=False)
class WaitingPrompt:
    """One prompt of a call."""

    call: Call
    index: int
    tokens: int
    """What it counts as."""
    passed: bool
    """Whether a bulk batch ran while it waited."""

    @property
    def input(self) -> PredictorInput:
        """What the model is given."""
        return self.call.prompts[self.index]


class PromptQueue:
    """What waits for the worker. The worker is free when `take` is called, and busy after it returned a batch."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: dict[Urgency, list[WaitingPrompt]] = {urgency: [] for urgency in Urgency}
        self._running: Urgency | None = None
        self._last_bulk = float("-inf")

    def waiting(self, urgency: Urgency) -> int:
        """Prompts that wait."""
        return len(self._waiting[urgency])

    def excess(self, urgency: Urgency, prompts: int) -> int:
        """How many prompts must leave before so many more may wait; 0 if they may now."""
        return max(0, self.waiting(urgency) + prompts - self._limits.waiting(urgency))

    def add(self, call: Call) -> None:
        """Let a call wait, for which there must be room."""
        passed = self._running is Urgency.BULK
        self._waiting[call.urgency] += [
            WaitingPrompt(call, index, self._counted(prompt.prompt_tokens), passed)
            for index, prompt in enumerate(call.prompts)
        ]

    def remove(self, call: Call) -> None:
        """Forget what still waits of a call."""
        self._waiting[call.urgency] = [one for one in self._waiting[call.urgency] if one.call is not call]

    def take(self, now: float) -> list[WaitingPrompt]:
        """The next batch, of one model; empty if nothing waits."""
        urgency = self._next(now)
        waiting = self._waiting[urgency]
        if not waiting:
            self._running = None
            return []
        batch = self._around(waiting[0], waiting)
        taken = set(map(id, batch))
        self._waiting[urgency] = [one for one in waiting if id(one) not in taken]
        self._running = urgency
        if urgency is Urgency.BULK:
            self._last_bulk = now
            for one in self._waiting[Urgency.INTERACTIVE]:
                one.passed = True
        return batch

    def _counted(self, tokens: int) -> int:
        return max(_SHORT_TOKENS, min(tokens, self._limits.read_tokens))

    def _next(self, now: float) -> Urgency:
        interactive, bulk = self._waiting[Urgency.INTERACTIVE], self._waiting[Urgency.BULK]
        if not interactive:
            return Urgency.BULK
        if not bulk or any(one.passed for one in interactive):
            return Urgency.INTERACTIVE
        since = max(self._last_bulk, bulk[0].call.arrival)
        return Urgency.BULK if now - since >= self._limits.bulk_patience_seconds else Urgency.INTERACTIVE

    def _around(self, seed: WaitingPrompt, waiting: Iterable[WaitingPrompt]) -> list[WaitingPrompt]:
        """The seed, and those of its model that are nearest to it in length."""
        ordered = sorted((one for one in waiting if one.call.model is seed.call.model), key=lambda one: one.tokens)
        low = ordered.index(seed)
        high = low + 1
        while high - low < self._limits.prompts:
            below = ordered[low - 1] if low > 0 else None
            above = ordered[high] if high < len(ordered) else None
            shortest, longest = ordered[low].tokens, ordered[high - 1].tokens
            if above and not self._fits(high - low + 1, shortest, above.tokens):
                above = None
            if below and not self._fits(high - low + 1, below.tokens, longest):
                below = None
            if below and (above is None or seed.tokens * seed.tokens <= below.tokens * above.tokens):
                low -= 1
            elif above:
                high += 1
            else:
                break
        return ordered[low:high]

    def _fits(self, prompts: int, shortest: int, longest: int) -> bool:
        return longest <= _SPREAD * shortest and prompts * longest <= self._limits.tokens


class Throughput:
    """How fast the worker is, measured over its latest batches."""

    def __init__(self) -> None:
        self._seconds_per_prompt: float | None = None

    def observe(self, prompts: int, seconds: float) -> None:
        """Note a batch that was computed."""
        newest, before = seconds / prompts, self._seconds_per_prompt
        self._seconds_per_prompt = newest if before is None else before + _SMOOTHING * (newest - before)

    def seconds_for(self, prompts: int) -> float | None:
        """How long so many prompts take; None before the first batch."""
        return None if self._seconds_per_prompt is None else prompts * self._seconds_per_prompt
