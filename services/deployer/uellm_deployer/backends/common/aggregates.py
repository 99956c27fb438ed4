"""What a batch cost, run-length encoded (docs/engine-protocol.md, step_aggregates)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Prefill:
    """One prefill: true and padded tokens, seconds."""

    rows: int
    tokens: int
    padded_tokens: int
    seconds: float


@dataclass(slots=True)
class DecodeRun:
    """Steps in a row with the same rows alive; `first_context` is the padded context of the first."""

    rows: int
    first_context: int
    steps: int
    context_tokens: int
    seconds: float


@dataclass(slots=True)
class StepLog:
    """Collects the steps of one batch."""

    prefill: list[Prefill] = field(default_factory=list)
    decode: list[DecodeRun] = field(default_factory=list)

    def add_prefill(self, rows: int, tokens: int, padded_tokens: int, seconds: float) -> None:
        """Record a prefill pass."""
        self.prefill.append(Prefill(rows, tokens, padded_tokens, seconds))

    def add_step(self, rows: int, padded_context: int, context_tokens: int, seconds: float) -> None:
        """Record a decode step; `context_tokens` is the sum of the rows' true contexts."""
        if not self.decode or self.decode[-1].rows != rows:
            self.decode.append(DecodeRun(rows, padded_context, 0, 0, 0.0))
        run = self.decode[-1]
        run.steps += 1
        run.context_tokens += context_tokens
        run.seconds += seconds

    @property
    def seconds(self) -> float:
        """Of all that was recorded."""
        return sum(run.seconds for run in self.prefill) + sum(run.seconds for run in self.decode)

    def to_json(self, seconds: float, kv_bytes_per_token: int) -> str:
        """The protocol's JSON; `seconds` is the batch's whole time in the engine once it began to run."""
        return json.dumps(asdict(self) | {"seconds": seconds, "kv_bytes_per_token": kv_bytes_per_token})
