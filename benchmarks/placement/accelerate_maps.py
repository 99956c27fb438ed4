"""Where accelerate puts modules: the library itself, on a model without memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

import torch
from accelerate.utils import get_balanced_memory, infer_auto_device_map
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from uellm_deployer.domain.helr.cost import Pricing, Span
from uellm_deployer.domain.helr.problem import Part, Problem

MODES = ("auto", "balanced_low_0", "sequential")
"""`balanced` is `auto` under another name."""
HOST_BYTES = 1 << 40
"""Of the host, to which it may spill."""

logging.getLogger("accelerate").setLevel(logging.ERROR)  # that there are no such devices here


class Skeleton:
    """A model on the meta device whose decoder layers are as large as the cost model has them."""

    def __init__(self, config: dict[str, Any], layers: Sequence[Part], *, quantised: bool, with_cache: bool) -> None:
        """Build it.

        Args:
            config: its `config.json`.
            layers: their sizes.
            quantised: whether the layers' weights are replaced by one packed tensor each, of their size; else they are
                the library's own in half precision.
            with_cache: whether a layer counts its share of the key-value cache, too.
        """
        wanted = AutoConfig.for_model(**config)
        with torch.device("meta"):
            self._model: Any = AutoModelForCausalLM.from_config(wanted, dtype=torch.float16)  # type: ignore[no-untyped-call]
        self._whole = list(self._model._no_split_modules)  # noqa: SLF001 - where transformers itself takes it from
        for module, part in zip(self._model.model.layers, layers, strict=True):
            if quantised:
                _empty(module)
                _add(module, "packed", part.weight_bytes)
            elif (own := sum(2 * tensor.numel() for tensor in module.parameters())) != part.weight_bytes:
                raise AssertionError(f"a layer has {own:,} bytes, in the cost model {part.weight_bytes:,}")
            if with_cache:
                _add(module, "cache", part.kv_bytes)
        self.layers = len(layers)
        self.device_map = cache(self._device_map)

    def _device_map(self, mode: str, room: tuple[int, ...]) -> dict[str, int | str]:
        """As `from_pretrained(device_map=mode, max_memory=room)` has it."""
        memory: dict[int | str, int] = {**dict(enumerate(room)), "cpu": HOST_BYTES}
        if mode != "sequential":
            memory = get_balanced_memory(
                self._model, memory, no_split_module_classes=self._whole, low_zero=mode == "balanced_low_0"
            )
        found: dict[str, int | str] = infer_auto_device_map(
            self._model, memory, no_split_module_classes=self._whole, verbose=False
        )
        return found

    def place(self, mode: str, pricing: Pricing) -> list[Span] | None:
        """Stages of a problem whose ends are layers (`ends_apart`); None: it spills to the host or to disk."""
        taken = pricing.problem.model.activation_bytes
        room = tuple(max(0, device.room_bytes - taken) for device in pricing.problem.devices)
        found = self.device_map(mode, room)
        names = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(self.layers)), "lm_head"]
        where = [_of_module(found, name) for name in names]
        if any(isinstance(place, str) for place in where):
            return None
        spans, first = list[Span](), 0
        for device, run in groupby(where):
            last = first + len(list(run))
            spans.append(Span((int(device),), first, last))
            first = last
        return spans


def ends_apart(problem: Problem) -> Problem:
    """The same with embedding and head as layers of their own: accelerate may part them from their neighbours."""
    model = problem.model
    layers = (model.embedding, *model.layers, model.head)
    if model.shared_bytes:
        raise ValueError("a tied head cannot be a layer of its own")
    return Problem(
        type(model)(layers, activation_bytes=model.activation_bytes, kv_heads=model.kv_heads),
        problem.workload,
        problem.devices,
        problem.links,
        problem.constraints,
    )


def _of_module(found: dict[str, int | str], name: str) -> int | str:
    """Of the longest entry that the name begins with."""
    while name and name not in found:
        name = name.rpartition(".")[0]
    return found[name]


def _empty(module: nn.Module) -> None:
    for part in module.modules():
        for name in [name for name, _ in part.named_parameters(recurse=False)]:
            delattr(part, name)


def _add(module: nn.Module, name: str, size: int) -> None:
    tensor = torch.empty(size, dtype=torch.int8, device="meta")
    module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
