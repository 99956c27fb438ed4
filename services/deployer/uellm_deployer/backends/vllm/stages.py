"""Stages of a plan as vLLM numbers them: worker `stage * group size + place in the group`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Stage:
    """Consecutive decoder layers on one device, or each of them shared by the devices of a tensor-parallel group."""

    devices: tuple[str, ...]
    layers: int


def parse_stages(text: str) -> tuple[Stage, ...]:
    """From the model config's parameter; empty: everything on the CPU. Raises ValueError."""
    try:
        found: Any = json.loads(text) if text else [[[CPU], 1]]
        stages = tuple(Stage(_names(devices), int(layers)) for devices, layers in found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model config parameter stages is no list of [[device, ...], layers]: {text}") from error
    devices = [device for stage in stages for device in stage.devices]
    gpus = [device for device in devices if device != CPU]
    for wrong, what in (
        (not stages or min(stage.layers for stage in stages) < 1, "has a stage without layers"),
        (len({len(stage.devices) for stage in stages}) > 1 or not devices, "has groups of different sizes, or none"),
        (len(gpus) not in (0, len(devices)), "mixes processors and GPUs"),
        (len(set(gpus)) < len(gpus), "names a GPU twice"),
    ):
        if wrong:
            raise ValueError(f"model config parameter stages {what}: {text}")
    return stages


def _names(devices: Any) -> tuple[str, ...]:
    if not isinstance(devices, list):
        raise TypeError(f"{devices!r} is no list")
    return tuple(map(str, devices))
