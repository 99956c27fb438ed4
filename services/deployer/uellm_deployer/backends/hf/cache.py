"""The key-value cache of a static batch: transformers' dynamic cache, without a copy of everything in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64  # tokens of room that a buffer has at least when it is made


class BufferedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """A full-attention layer whose keys and values are views into buffers with room ahead.

    Shapes are [rows, heads, tokens, head size].
    """

    keys: Tensor
    values: Tensor
    _key_buffer: Tensor
    _value_buffer: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append the new states; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._reserve(key_states[:, :, :0], value_states[:, :, :0], key_states.shape[2])
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._key_buffer.shape[2]:
            self._reserve(self.keys, self.values, end)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: Tensor, trim: int) -> None:
        """Keep these rows and drop the first `trim` tokens of each."""
        rows = rows.to(self.keys.device)
        tokens = self.keys.shape[2] - trim
        self._key_buffer = self._key_buffer[:, :, trim:].index_select(0, rows)
        self._value_buffer = self._value_buffer[:, :, trim:].index_select(0, rows)
        self._show(tokens)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order."""
        self.keep(beam_idx, 0)

    def _reserve(self, keys: Tensor, values: Tensor, tokens: int) -> None:
        room = tokens + max(ROOM, tokens // 4)
        self._key_buffer, self._value_buffer = _with_room(keys, room), _with_room(values, room)
        self._show(keys.shape[2])

    def _show(self, tokens: int) -> None:
        self.keys, self.values = self._key_buffer[:, :, :tokens], self._value_buffer[:, :, :tokens]


class WindowLayer(DynamicSlidingWindowLayer):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """A layer with a sliding window, which keeps the last `window - 1` tokens and nothing behind them."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new states; returns those that the new tokens may see."""
        seen: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
        if key_states.shape[2] > 1:  # what is kept is a view that would hold on to the whole prompt
            self.keys, self.values = self.keys.clone(), self.values.clone()
        return seen

    def keep(self, rows: Tensor, trim: int) -> None:
        """Keep these rows and drop the first `trim` tokens of each, as far as they are still there."""
        self.cumulative_length -= trim
        rows = rows.to(self.keys.device)
        gone = max(0, self.keys.shape[2] - self.cumulative_length)
        self.keys = self.keys[:, :, gone:].index_select(0, rows)
        self.values = self.values[:, :, gone:].index_select(0, rows)


def _with_room(states: Tensor, room: int) -> Tensor:
    rows, heads, tokens, size = states.shape
    buffer = states.new_empty(rows, heads, room, size)
    buffer[:, :, :tokens] = states
    return buffer


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model of this config; layers of other kinds stay transformers' own."""
    cache = DynamicCache(config=config)
    # Attention in chunks has the same cache layers, but its masks depend on where a row begins.
    windows = getattr(config.get_text_config(decoder=True), "attention_chunk_size", None) is None
    cache.layers = [_own(layer, windows=windows) for layer in cache.layers]
    return cache


def _own(layer: Any, *, windows: bool) -> Any:
    if type(layer) is DynamicLayer:
        return BufferedLayer()  # type: ignore[no-untyped-call]
    if type(layer) is DynamicSlidingWindowLayer and windows:
        return WindowLayer(layer.sliding_window)
    return layer


def is_trimmable(cache: DynamicCache) -> bool:
    """Whether leading columns may be dropped in every layer, and prompts be computed in parts."""
    return all(isinstance(layer, BufferedLayer | WindowLayer) for layer in cache.layers)


def keep_rows(cache: DynamicCache, rows: Tensor, trim: int = 0) -> None:
    """Keep these rows of every layer; `trim` > 0 only for a trimmable cache."""
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer | WindowLayer):
            layer.keep(rows, trim)
        else:
            layer.reorder_cache(torch.LongTensor(rows))


def measured_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values held, room not counted."""
    parts = [part for layer in cache.layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))
