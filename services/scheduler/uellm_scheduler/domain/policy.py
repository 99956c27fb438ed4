"""What a batching policy is: a pure function of what waits, what runs and the time.

The same signature serves the live scheduler, replay and simulation. A policy keeps no state and does no I/O; its only
randomness is the generator it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.model import CostModel
from uellm.cost.steps import StepTime
from uellm.v1.query_pb2 import Refusal
from uellm.v1.stream_pb2 import ENGINE_KIND_CONTINUOUS, EngineKind

from .pending import QueryColumns
from .pending_query import NEVER


@dataclass(frozen=True, slots=True)
class RunningRow:
    """A row that is on an engine."""

    prompt_tokens: int
    delivered_tokens: int
    length_points: tuple[float, ...]
    """Predicted length as `odds.length_points` has it."""
    limit_tokens: int
    length_tail: tuple[float, ...] = ()
    """Its quantiles at `odds.TAIL`; empty: as long as its limit."""
    deadline_ms: int = NEVER
    """When the whole answer is due, on the queue's clock."""

    @property
    def expected_tokens(self) -> float:
        """Mean of what is still to come, at least 1."""
        left = [point - self.delivered_tokens for point in self.length_points if point > self.delivered_tokens]
        return sum(left) / len(left) if left else 1.0

    @property
    def fewest_tokens(self) -> float:
        """As few as may be still to come: hardly an answer is shorter."""
        return max(1.0, min(self.length_points, default=0.0) - self.delivered_tokens)


@dataclass(frozen=True, slots=True)
class EngineView:
    """One deployment of the model, as a policy sees it."""

    deployment: str
    """Resource name."""
    kind: EngineKind
    free_batches: int
    """How many batches it takes now; a continuous engine with a free row one."""
    max_batch_rows: int
    """Of one batch; of a continuous engine, rows at once."""
    context_tokens: int
    """Prompt and answer together."""
    kv_budget_bytes: int
    kv_cache: KvCacheLayout
    cost: CostModel
    """Its step time, with what is uncertain about it."""
    traffic_share: float
    running: tuple[tuple[RunningRow, ...], ...] = ()
    """Rows of each batch that runs."""
    page_tokens: int = 0
    """Of one page of the cache; 0: it is not paged."""
    served_tokens: float = 0.0
    """Made lately, those of long ago less: as `shares.RecentTokens` counts."""

    @property
    def continuous(self) -> bool:
        """Whether rows join and leave at any step."""
        return self.kind == ENGINE_KIND_CONTINUOUS

    @property
    def rows(self) -> list[RunningRow]:
        """All that run on it, or are about to."""
        return [row for batch in self.running for row in batch]

    @property
    def free_rows(self) -> int:
        """How many rows may begin now, as far as places go."""
        if self.continuous:
            return max(0, self.max_batch_rows - sum(map(len, self.running))) if self.free_batches else 0
        return self.free_batches * self.max_batch_rows

    @property
    def step_time(self) -> StepTime:
        """The most probable step time."""
        return self.cost.step_time


@dataclass(frozen=True, slots=True)
class QueueView:
    """All that a policy may know.

    Attributes:
        table: what waits; only rows in `slots` are to be used.
        slots: slots that may be dispatched now, in order of arrival, shape [n].
        engines: the deployments that take queries.
        alone: whether it shows one query only, which is to be served by itself.
    """

    table: QueryColumns
    slots: NDArray[np.intp]
    engines: tuple[EngineView, ...]
    alone: bool = False

    def column(self, name: str) -> NDArray[Any]:
        """A column of the eligible rows, in order of arrival, shape [n]."""
        column: NDArray[Any] = self.table.column(name)[self.slots]
        return column


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch to dispatch now."""

    deployment: str
    slots: tuple[int, ...]
    """Its queries, in row order."""


@dataclass(frozen=True, slots=True)
class RefusalPlan:
    """A query to reject now."""

    slot: int
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. An empty decision is: wait for the next event."""

    batches: tuple[BatchPlan, ...] = ()
    refusals: tuple[RefusalPlan, ...] = ()
    wake_ms: int | None = None
    """Ask again at this time at the latest."""


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """How a policy is named to people."""

    name: str
    description: str
    version: int = 1
    refuses: bool = False
    """Whether it refuses what can't be served in time; `Submit` then does so, too."""


class Policy(Protocol):
    """A batching policy."""

    info: ClassVar[PolicyInfo]

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:
        """Decide what to dispatch and what to reject now, for every free place. `now_ms` is the queue's clock.

        It is asked again when queries or places have changed, or at `Decision.wake_ms`.
        """


@dataclass(slots=True)
class BatchBudget:
    """Room in one batch of a static engine.

    Such an engine pads every row to the longest prompt and keeps its cache until the row ends:
    `rows` rows of `longest prompt + longest limit` tokens must fit its KV budget.
    """

    engine: EngineView
    rows: int = 0
    longest_prompt: int = 0
    longest_answer: int = 0
    slots: list[int] = field(default_factory=list)

    def take(self, slot: int, prompt_tokens: int, limit_tokens: int) -> bool:
        """Put a query in, if there is room."""
        prompt = max(self.longest_prompt, prompt_tokens)
        answer = max(self.longest_answer, limit_tokens)
        bytes_needed = self.engine.kv_cache.padded_bytes(self.rows + 1, prompt + answer)
        # A row that does not fit alone runs alone: it was admitted, and the engine has the last word on memory.
        if self.rows and (self.rows >= self.engine.max_batch_rows or bytes_needed > self.engine.kv_budget_bytes):
            return False
        self.rows, self.longest_prompt, self.longest_answer = self.rows + 1, prompt, answer
        self.slots.append(slot)
        return True
