"""Stages of a plan as the device map that transformers loads a model by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive decoder layers on one device."""

    device: str
    layers: int


def parse_stages(text: str) -> tuple[Stage, ...]:
    """From the model config's parameter; empty: everything on the CPU. Raises ValueError."""
    try:
        found: Any = json.loads(text) if text else [["cpu", 1]]
        stages = tuple(Stage(str(device), int(layers)) for device, layers in found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model config parameter stages is no list of [device, layers]: {text}") from error
    if not stages or min(stage.layers for stage in stages) < 1:
        raise ValueError(f"model config parameter stages has a stage without layers: {text}")
    return stages


def device_map(weights: str, stages: tuple[Stage, ...]) -> dict[str, str]:
    """Where each module goes; ValueError if the stages do not hold the model's layers.

    Embeddings go with the first stage, and what follows the layers with the last. Which modules those are is read off
    the model itself, built without memory.
    """
    if len(stages) == 1:
        return {"": stages[0].device}
    config = AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return _map_of(model, stages)


def _map_of(model: nn.Module, stages: tuple[Stage, ...]) -> dict[str, str]:
    devices = [stage.device for stage in stages for _ in range(stage.layers)]
    name = _layers_of(model, len(devices))
    found = {f"{name}.{layer}": device for layer, device in enumerate(devices)}
    *path, last = name.split(".")
    parent, prefix = model, ""
    for step in [*path, last]:
        for sibling, module in parent.named_children():
            if sibling != step:
                first = isinstance(module, nn.Embedding) or not any(True for _ in module.parameters())
                found[prefix + sibling] = devices[0] if first else devices[-1]
        parent, prefix = parent.get_submodule(step), f"{prefix}{step}."
    return found


def _layers_of(model: nn.Module, count: int) -> str:
    """Name of the list of the decoder layers: the outermost of that length."""
    alike: list[str] = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not alike:
        raise ValueError(f"the stages hold {count} layers, which is not what the model has")
    return min(alike, key=lambda name: name.count("."))
