"""This machine: its topology, and how it is used."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psutil

from uellm.rpc.errors import UellmError
from uellm_deployer.adapters.cpu import cpu_memory, read_cpu
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.app.ports import TopologySource, TritonHost
from uellm_deployer.app.signals import DeviceUsage
from uellm_deployer.domain.topology import Topology
from uellm_deployer.domain.visible import visible


class Machine:
    """GPUs where there is a driver, and the processor. To be used by one thread."""

    def __init__(self, nvml: Nvml | None) -> None:
        self._nvml = nvml
        psutil.cpu_percent()  # counts from its last call in the same thread

    async def read(self) -> Topology:
        """The machine with the memory that is free now."""
        return await asyncio.to_thread(self._read)

    async def usage(self) -> tuple[DeviceUsage, ...]:
        """How its devices are used; the processor's utilisation is that since the last call."""
        busy = psutil.cpu_percent() / 100
        return await asyncio.to_thread(self._usage, busy)

    def _read(self) -> Topology:
        cpu = read_cpu()
        if self._nvml is None:
            return Topology((cpu,), (), "cpu")
        gpus, links = self._nvml.read()
        return Topology((*gpus, cpu), links, "nvml")

    def _usage(self, busy: float) -> tuple[DeviceUsage, ...]:
        gpus = self._nvml.utilisation() if self._nvml is not None else ()
        return (*(DeviceUsage(gpu, share) for gpu, share in gpus), DeviceUsage(cpu_memory(), busy))


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
