"""The catalogue of GPUs that the package ships, `gpus.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uellm_deployer.domain.gpus import Catalogue, GpuModel

FILE = Path(__file__).with_name("gpus.toml")

_MIB = 1 << 20
_DEFAULT_LANES = 16


@functools.cache
def catalogue() -> Catalogue:
    """What is shipped."""
    entries = tomllib.loads(FILE.read_text())["gpu"]
    return Catalogue((_model(entry), entry.get("aliases", ())) for entry in entries)


def _model(entry: Mapping[str, Any]) -> GpuModel:
    return GpuModel(
        name=entry["name"],
        memory_bytes=entry["memory_mib"] * _MIB,
        memory_bandwidth=entry["memory_gb_s"] * 1e9,
        flops=entry["fp16_tflops"] * 1e12,
        nvlinks=entry.get("nvlinks", 0),
        nvlink_bandwidth=entry.get("nvlink_gb_s", 0) * 1e9,
        pcie_generation=entry["pcie"],
        pcie_lanes=entry.get("pcie_lanes", _DEFAULT_LANES),
        source=entry["source"],
    )
