"""What keys and values of past tokens take: of a row, of a padded batch, of a paged engine. All results are bytes.

A layer with a sliding window of w tokens lets a token see itself and the w - 1 before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from uellm.cost.lengths import LengthDistribution
from uellm.v1.stream_pb2 import KvCacheLayers, ModelFacts

PAGE_TOKENS = 16
"""Tokens of a block of vLLM's paged cache, if nobody says otherwise."""

BUFFER_ROOM_TOKENS = 64
"""Room that the static engine's buffers have at least when they are made; else a quarter of what they hold."""


@dataclass(frozen=True, slots=True)
class KvCacheGroup:
    """Decoder layers whose caches are alike."""

    layers: int
    bytes_per_token: int
    """Of one layer."""
    window_tokens: int = 0
    """Tokens that attention reaches, the one that asks included; 0: all."""
    fixed_bytes: int = 0
    """Of one layer and row, whatever the length."""

    def __post_init__(self) -> None:
        """Check the numbers; raises ValueError."""
        if self.layers < 1 or min(self.bytes_per_token, self.window_tokens, self.fixed_bytes) < 0:
            raise ValueError(f"a group has at least one layer and no negative number: {self}")
        if self.window_tokens == 1:
            raise ValueError("a window of one token keeps nothing, which engines do not do")

    def bytes_of(self, tokens: int) -> int:
        """All layers of the group with so many tokens of one row."""
        return self.layers * (self.bytes_per_token * tokens + self.fixed_bytes)

    def reach(self, tokens: int, reach: int) -> int:
        """`tokens`, but at most `reach` if there is a window."""
        return min(tokens, reach) if self.window_tokens else tokens


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    """The cache of a model in one number format on one engine. Contexts are prompt and answer together, in tokens."""

    groups: tuple[KvCacheGroup, ...] = ()

    @property
    def bytes_per_token(self) -> int:
        """What a token adds as long as no window is full."""
        return sum(group.layers * group.bytes_per_token for group in self.groups)

    def row_bytes(self, context_tokens: int) -> int:
        """Keys and values that transformers holds for one row.

        Windowed layers keep w - 1 tokens: the window of the token to come.
        """
        return sum(group.bytes_of(group.reach(context_tokens, group.window_tokens - 1)) for group in self.groups)

    def allocated_row_bytes(self, context_tokens: int, new_tokens: int) -> int:
        """Memory behind them in transformers' own cache after a pass of `new_tokens`, which count as context.

        A windowed layer shows the last w - 1 tokens of what the pass put together, and the whole of it stays
        allocated until the next pass: after the prefill that is the whole prompt.
        """
        before = context_tokens - new_tokens
        return sum(group.bytes_of(group.reach(before, group.window_tokens - 1) + new_tokens) for group in self.groups)

    def padded_bytes(self, rows: int, context_tokens: int) -> int:
        """Keys and values of a padded batch: every row takes the place of the longest."""
        return rows * self.row_bytes(context_tokens)

    def padded_quantile_bytes(
        self, prompt_tokens: Sequence[int], answers: Sequence[LengthDistribution], probability: float
    ) -> int:
        """What a padded batch of independent rows stays within with this probability when it ends.

        The longest answer's distribution is the product of the rows' distributions. One row: the quantile of a query.
        """
        low, high = 1, max(answer.limit for answer in answers)
        while low < high:
            middle = (low + high) // 2
            if prod(answer.cdf(middle) for answer in answers) >= probability:
                high = middle
            else:
                low = middle + 1
        return self.padded_bytes(len(answers), max(prompt_tokens) + low)

    def buffered_bytes(self, rows: int, context_tokens: int) -> int:
        """Most that the static engine that ships allocates for a padded batch up to this context.

        Full layers lie in buffers with room ahead, windowed layers hold one window; one layer at a time is copied.
        """
        return self.held_bytes(rows, context_tokens) + self.copied_bytes(rows, context_tokens)

    def held_bytes(self, rows: int, context_tokens: int) -> int:
        """Of that, the buffers."""
        room = context_tokens + max(BUFFER_ROOM_TOKENS, context_tokens // 4)
        return rows * sum(
            group.bytes_of(min(context_tokens, group.window_tokens) if group.window_tokens else room)
            for group in self.groups
        )

    def copied_bytes(self, rows: int, context_tokens: int) -> int:
        """Of that, the copy of one layer, the largest."""
        return rows * max((group.bytes_per_token for group in self.groups), default=0) * context_tokens

    def paged_row_bytes(self, context_tokens: int, page_tokens: int = PAGE_TOKENS, pass_tokens: int = 1) -> int:
        """Most that one row holds of a paged cache up to this context, in passes of at most `pass_tokens` tokens.

        As vLLM with its hybrid cache manager: whole pages; those that have left the window behind are given back
        before each pass. Pages of prefixes shared between rows count for each row, the filler with which vLLM evens out
        groups of layers for none.
        """
        total = 0
        for group in self.groups:
            span = group.window_tokens - 1 + pass_tokens  # tokens seen by a pass; they need not begin with a page
            pages = group.reach(-(-context_tokens // page_tokens), -(-(span - 1) // page_tokens) + 1)
            total += group.bytes_of(pages * page_tokens)
        return total

    def paged_bytes(self, context_tokens: Sequence[int], page_tokens: int = PAGE_TOKENS, pass_tokens: int = 1) -> int:
        """The same for all rows of a paged engine."""
        return sum(self.paged_row_bytes(context, page_tokens, pass_tokens) for context in context_tokens)

    def to_proto(self) -> list[KvCacheLayers]:
        """As a deployment's record holds it."""
        return [
            KvCacheLayers(
                layers=group.layers,
                bytes_per_token=group.bytes_per_token,
                window_tokens=group.window_tokens,
                fixed_bytes=group.fixed_bytes,
            )
            for group in self.groups
        ]

    @classmethod
    def from_facts(cls, facts: ModelFacts) -> KvCacheLayout:
        """From a deployment's record; one that names no layers is taken for full attention everywhere."""
        if not facts.kv_cache_layers:
            return cls((KvCacheGroup(1, facts.kv_bytes_per_token),))
        return cls(
            tuple(
                KvCacheGroup(layers.layers, layers.bytes_per_token, layers.window_tokens, layers.fixed_bytes)
                for layers in facts.kv_cache_layers
            )
        )
