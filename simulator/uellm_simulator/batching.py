"""What tells a static engine from a continuous one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from uellm.cost.kv_cache import KvCacheLayout
from uellm.v1.stream_pb2 import ENGINE_KIND_CONTINUOUS, DeploymentRecord
from uellm_simulator.engine import Batching, Row

PROMPT_TOKENS_AT_ONCE = 4096
"""Of one prefill of a continuous engine, unless a single prompt is longer."""


class StaticBatching:
    """One batch after the other. Rows are padded to the longest, and leave as they end; none joins."""

    def admit(self, running: Sequence[Row], waiting: deque[Row]) -> list[Row]:
        """The oldest batch, once nothing runs."""
        if running:
            return []
        batch = waiting[0].batch
        rows = [row for row in waiting if row.batch is batch]
        for _ in rows:
            waiting.popleft()
        return rows

    def context_tokens(self, rows: Sequence[Row]) -> int:
        """As wide as the longest."""
        return len(rows) * max(row.context for row in rows)

    def prefill_tokens(self, rows: Sequence[Row]) -> int:
        """As wide as the longest; what was made before an interruption is read, too."""
        return self.context_tokens(rows)

    def steps_that_fit(self, rows: Sequence[Row], steps: int, context_tokens: int) -> int:  # noqa: ARG002
        """All: policies form batches that fit whole."""
        return steps


@dataclass(frozen=True, slots=True)
class ContinuousBatching:
    """Rows join between any two steps, in order of arrival, as far as places and pages of the cache go."""

    max_rows: int
    kv_cache: KvCacheLayout
    kv_budget_bytes: int
    page_tokens: int

    def admit(self, running: Sequence[Row], waiting: deque[Row]) -> list[Row]:
        """Those that fit; one in any case if nothing runs."""
        joining: list[Row] = []
        tokens, held = 0, self._held(running, 1)
        while waiting and len(running) + len(joining) < self.max_rows:
            row = waiting[0]
            held += self._row_bytes(row.context + 1)
            alone = not (running or joining)
            tokens += row.context
            if not alone and (held > self.kv_budget_bytes or (joining and tokens > PROMPT_TOKENS_AT_ONCE)):
                break
            joining.append(waiting.popleft())
        return joining

    def context_tokens(self, rows: Sequence[Row]) -> int:
        """Each row its own."""
        return sum(row.context for row in rows)

    def prefill_tokens(self, rows: Sequence[Row]) -> int:
        """Each row its own; what was made before an interruption is computed again."""
        return sum(row.context for row in rows)

    def steps_that_fit(self, rows: Sequence[Row], steps: int, context_tokens: int) -> int:
        """By bisection over what the rows hold then."""
        most = context_tokens + len(rows) * (steps + self.page_tokens)
        if most * self.kv_cache.bytes_per_token <= self.kv_budget_bytes:
            return steps
        low, high = 0, steps
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._held(rows, middle) <= self.kv_budget_bytes else (low, middle - 1)
        return low

    def _held(self, rows: Sequence[Row], steps: int) -> int:
        return sum(self._row_bytes(row.context + steps) for row in rows)

    def _row_bytes(self, context_tokens: int) -> int:
        return self.kv_cache.paged_row_bytes(context_tokens, self.page_tokens)


def batching_of(record: DeploymentRecord) -> Batching:
    """As a deployment's engine batches."""
    if record.engine_kind != ENGINE_KIND_CONTINUOUS:
        return StaticBatching()
    limits = record.limits
    layout = KvCacheLayout.from_facts(record.facts)
    return ContinuousBatching(limits.max_batch_rows, layout, limits.kv_budget_bytes, limits.kv_page_tokens or 1)
