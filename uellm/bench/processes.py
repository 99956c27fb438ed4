"""Processor time of the client and of the parts that it measures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Processes:
    """Parts by name, with their process ids; the client is this process."""

    pids: Mapping[str, int] = field(default_factory=dict)

    def read(self) -> dict[str, float]:
        """Seconds used so far, by name; a part with its children, the client without. Those that ended are left out."""
        found = {CLIENT: _seconds(psutil.Process(os.getpid()))}
        for name, pid in self.pids.items():
            try:
                part = psutil.Process(pid)
                found[name] = sum(map(_seconds, [part, *part.children(recursive=True)]))
            except psutil.Error:
                continue  # it is being started again
        return found


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
