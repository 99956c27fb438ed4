"""The key-value cache of a static batch: transformers' dynamic cache, without a copy of everything in every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

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


def _with_room(states: Tensor, room: int) -> Tensor:
    rows, heads, tokens, size = states.shape
    buffer = states.new_empty(rows, heads, room, size)
    buffer[:, :, :tokens] = states
    return buffer


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model of this config; layers that are not plain full attention stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [
        BufferedLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]
        for layer in cache.layers
    ]
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps all tokens in order, so that leading columns may be dropped."""
    return all(isinstance(layer, BufferedLayer) for layer in cache.layers)


def keep_rows(cache: DynamicCache, rows: Tensor, trim: int = 0) -> None:
    """Keep these rows of every layer; `trim` > 0 only for a plain cache."""
    for layer in cache.layers:
        if isinstance(layer, BufferedLayer):
            layer.keep(rows, trim)
        else:
            layer.reorder_cache(torch.LongTensor(rows))


def measured_bytes(cache: DynamicCache) -> int:
    """Bytes of the keys and values held, room not counted."""
    parts = [part for layer in cache.layers for part in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))
