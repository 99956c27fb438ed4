"""The topology of this machine."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from uellm.rpc.errors import UellmError
from uellm_deployer.adapters.cpu import read_cpu
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.app.ports import TopologySource, TritonHost
from uellm_deployer.domain.topology import Topology
from uellm_deployer.domain.visible import visible


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


class SeenByTriton:
    """A machine less what Triton's process does not see of it, as far as its host tells."""

    def __init__(self, machine: TopologySource, host: TritonHost) -> None:
        self._machine = machine
        self._host = host

    async def read(self) -> Topology:
        """The machine with the memory that is free now; a host that does not answer leaves it whole, with a warning."""
        topology = await self._machine.read()
        try:
            return visible(topology, await self._host.environment())
        except UellmError as error:
            unknown = f"which GPUs Triton sees is not known: {error.message}"
            return replace(topology, warnings=(*topology.warnings, unknown))
