"""How long a batch takes: `t(B, C) = base + per_row * B + per_context_token * C` a decode step. Times are seconds.

The prefill yields a row's first token, so an answer of L tokens takes L - 1 decode steps; step k reads the prompt and
the k tokens that are there. C is `B * max(context)` on a padded engine, which drops the columns that the rows still
alive do not need, and the sum of the contexts on a paged one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from uellm.v1.stream_pb2 import StepTimePrior


@dataclass(frozen=True, slots=True)
class Work:
    """What a batch, or a part of one, makes an engine do: the features of the step-time model."""

    steps: float = 0.0
    """Decode steps."""
    row_steps: float = 0.0
    """Sum over the steps of the rows alive."""
    context_tokens: float = 0.0
    """Sum over the steps of the context, padded where the engine pads."""
    prefill_tokens: float = 0.0
    """Tokens of the prompts, padded where the engine pads."""
    starts: float = 0.0
    """Batches begun."""

    @property
    def decode(self) -> tuple[float, float, float]:
        """Features of base, per row and per context token."""
        return self.steps, self.row_steps, self.context_tokens

    @property
    def start(self) -> tuple[float, float]:
        """Features of prefill per token and start-up."""
        return self.prefill_tokens, self.starts


@dataclass(frozen=True, slots=True)
class StepTime:
    """Coefficients of the step-time model, in seconds, none negative."""

    base: float
    """Per decode step."""
    per_row: float
    """Per row alive and step."""
    per_context_token: float
    """Per context token and step."""
    prefill_per_token: float
    """Per token of the prompts."""
    startup: float
    """Per batch."""

    def __post_init__(self) -> None:
        """Check the coefficients; raises ValueError."""
        for coefficient in fields(self):
            value = getattr(self, coefficient.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{coefficient.name} must be finite and not negative; got {value}")

    @classmethod
    def from_prior(cls, prior: StepTimePrior) -> StepTime:
        """From a deployment's record; raises ValueError if a coefficient is negative or not finite."""
        return cls(
            base=prior.base_seconds,
            per_row=prior.per_row_seconds,
            per_context_token=prior.per_context_token_seconds,
            prefill_per_token=prior.prefill_per_token_seconds,
            startup=prior.startup_seconds,
        )

    def to_prior(self, source: str) -> StepTimePrior:
        """As a deployment's record holds it; `source` says where the figures come from."""
        return StepTimePrior(
            base_seconds=self.base,
            per_row_seconds=self.per_row,
            per_context_token_seconds=self.per_context_token,
            prefill_per_token_seconds=self.prefill_per_token,
            startup_seconds=self.startup,
            source=source,
        )

    def step_seconds(self, rows: float, context_tokens: float) -> float:
        """One decode step of `rows` rows over `context_tokens` tokens of context in all."""
        return self.base + self.per_row * rows + self.per_context_token * context_tokens

    def first_token_seconds(self, prompt_tokens: float) -> float:
        """Start-up and prefill; `prompt_tokens` in all, padding included on a padded engine."""
        return self.startup + self.prefill_per_token * prompt_tokens

    def seconds(self, work: Work) -> float:
        """All of the work."""
        decode = self.base * work.steps + self.per_row * work.row_steps + self.per_context_token * work.context_tokens
        return decode + self.prefill_per_token * work.prefill_tokens + self.startup * work.starts

    def decode_seconds(self, prompt_tokens: Sequence[int], output_tokens: Sequence[float], *, padded: bool) -> float:
        """All decode steps of a batch; arguments as of `batch_work`."""
        steps, row_steps, context_tokens = batch_work(prompt_tokens, output_tokens, padded=padded).decode
        return self.seconds(Work(steps, row_steps, context_tokens))

    def batch_seconds(self, prompt_tokens: Sequence[int], output_tokens: Sequence[float], *, padded: bool) -> float:
        """A batch from start-up to its last token; arguments as of `batch_work`."""
        return self.seconds(batch_work(prompt_tokens, output_tokens, padded=padded))

    def alone_seconds(self, prompt_tokens: int, output_tokens: float) -> float:
        """One query served alone, without waiting: a batch of one row, for which padding makes no difference."""
        return self.batch_seconds([prompt_tokens], [output_tokens], padded=False)


def batch_work(prompt_tokens: Sequence[int], output_tokens: Sequence[float], *, padded: bool) -> Work:
    """The work of a batch whose rows leave as they end, in closed form.

    Args:
        prompt_tokens: of each row.
        output_tokens: of each row, at least 1; quantiles need not be whole.
        padded: whether the engine pads every row to the longest context.
    """
    rows = sorted(zip(output_tokens, prompt_tokens, strict=True))
    if rows and rows[0][0] < 1:
        raise ValueError(f"an answer has at least 1 token; got {rows[0][0]}")
    # Longest prompt, and sum of the prompts, of the rows from each one on: those alive once the others have left.
    widest, total = [0.0] * (len(rows) + 1), [0.0] * (len(rows) + 1)
    for i in range(len(rows) - 1, -1, -1):
        widest[i], total[i] = max(widest[i + 1], rows[i][1]), total[i + 1] + rows[i][1]
    row_steps = context_tokens = done = 0.0
    for i, (length, _) in enumerate(rows):
        alive = len(rows) - i
        steps, last = length - 1 - done, length - 1
        row_steps += steps * alive
        # Prompts, and the sum over the steps k = done + 1 .. last of the answers' part of the context, k tokens a row.
        context_tokens += steps * (alive * widest[i] if padded else total[i])
        context_tokens += alive * (last * (last + 1) - done * (done + 1)) / 2
        done = last
    prefill = len(rows) * max(prompt_tokens, default=0) if padded else sum(prompt_tokens)
    return Work(done, row_steps, context_tokens, prefill, 1.0)
