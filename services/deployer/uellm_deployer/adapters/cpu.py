"""The processor as a device."""

from __future__ import annotations

import functools
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from uellm_deployer.domain.topology import Device, DeviceKind

_COPY_BYTES = 64 << 20  # well beyond the caches that one process gets
_MATRIX = 768
_REPEATS = 3
_UNLIMITED = 1 << 60  # what cgroups of version 1 say for no limit is near 2^63


def read_cpu(root: Path = Path("/")) -> Device:
    """All processors as one device `cpu0`, with the memory that is left to this process's control group.

    Bandwidth and rate are measured at the first call, which takes some tenths of a second.
    """
    bandwidth, flops = measured_rates()
    return replace(cpu_memory(root), memory_bandwidth=bandwidth, flops=flops, numa_node=_numa_node(root))


def cpu_memory(root: Path = Path("/")) -> Device:
    """The same device without its rates, which nothing is measured for."""
    memory = psutil.virtual_memory()
    limit, used = _group_memory(root)
    return Device(
        id="cpu0",
        kind=DeviceKind.CPU,
        model=_model(root),
        memory_bytes=min(memory.total, limit),
        free_memory_bytes=max(0, min(memory.available, limit - used)),
    )


@functools.cache
def measured_rates() -> tuple[float, float]:
    """Memory bandwidth of a copy in bytes a second, read and write counted; single-precision operations a second."""
    source = np.ones(_COPY_BYTES // 8)
    target = np.empty_like(source)
    copy = _best(lambda: np.copyto(target, source))
    matrix = np.ones((_MATRIX, _MATRIX), dtype=np.float32)
    product = _best(lambda: matrix @ matrix)
    return 2 * _COPY_BYTES / copy, 2 * _MATRIX**3 / product


def _best(action: Callable[[], object]) -> float:
    """Least seconds of a few repetitions; the first, which faults memory in, does not count."""
    action()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _group_memory(root: Path) -> tuple[int, int]:
    """Limit and use of the control group, file cache that can be dropped not counted; bytes."""
    group = root / "sys/fs/cgroup"
    for limit_file, used_file, stat_file, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        limit = _integer(group / limit_file)
        if limit is not None and limit < _UNLIMITED:
            used = _integer(group / used_file) or 0
            return limit, max(0, used - _statistic(group / stat_file, cache))
    return _UNLIMITED, 0


def _integer(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _statistic(file: Path, key: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == key), 0)


def _model(root: Path) -> str:
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _numa_node(root: Path) -> int:
    """The node if there is one only; -1 where the memory spans several."""
    nodes = list((root / "sys/devices/system/node").glob("node[0-9]*"))
    return int(nodes[0].name.removeprefix("node")) if len(nodes) == 1 else -1
