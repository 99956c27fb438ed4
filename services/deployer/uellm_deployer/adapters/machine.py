"""The topology of this machine."""

from __future__ import annotations

import asyncio

from uellm_deployer.adapters.cpu import read_cpu
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.domain.topology import Topology


class Machine:
    """GPUs where there is a driver, and the processor."""

    def __init__(self, nvml: Nvml | None) -> None:
        self._nvml = nvml

    async def read(self) -> Topology:
        """The machine with the memory that is free now."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Topology:
        cpu = read_cpu()
        if self._nvml is None:
            return Topology((cpu,), (), "cpu")
        gpus, links = self._nvml.read()
        return Topology((*gpus, cpu), links, "nvml")
