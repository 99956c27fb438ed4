"""A model is unloaded when the memory of its GPUs is back, or known to be lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

import structlog
from prometheus_client import Gauge

from uellm_deployer.app.book import Book
from uellm_deployer.app.ports import Clock, EngineReport, JournalEntry, ModelServer, TopologySource
from uellm_deployer.domain.leak import Leak
from uellm_deployer.domain.topology import DeviceKind

log = structlog.get_logger(__name__)

RETURNED_SHARE = 0.5
"""Of the weights: others may take memory in the same moment."""

RETURN_SECONDS = 30.0
POLL_SECONDS = 0.2

_LEAKED = Gauge("uellm_deployer_leaked_bytes", "Memory that unloads did not give back", ["device"])


class MemoryWatch:
    """A model server that looks at the GPUs after each unload, and remembers in the journal what it misses.

    Not at the processor: what is free there changes by more than a model with everything that runs beside it, and
    what a process had there is back when it has ended, as engines' do with the unload.
    """

    def __init__(self, server: ModelServer, book: Book, source: TopologySource, clock: Clock) -> None:
        self._server = server
        self._book = book
        self._source = source
        self._clock = clock
        self._export()

    async def ready_models(self) -> frozenset[str]:
        """As the server's."""
        return await self._server.ready_models()

    async def load(self, name: str) -> None:
        """As the server's."""
        await self._server.load(name)

    async def verify(self, name: str, plan_hash: str) -> EngineReport:
        """As the server's."""
        return await self._server.verify(name, plan_hash)

    async def batches_running(self, name: str) -> int:
        """As the server's."""
        return await self._server.batches_running(name)

    async def unload(self, name: str) -> None:
        """Unload a model, and wait until its memory is back, or for RETURN_SECONDS."""
        weights = self._weights(name)
        loaded = bool(weights) and name in await self._server.ready_models()
        before = await self._free(weights) if loaded else {}
        await self._server.unload(name)
        if before:
            await self._await_return(name, weights, before)

    async def look(self) -> None:
        """Forget leaks whose memory has come back, as after a restart of Triton. To be called every few seconds."""
        leaks = list(self._book.leaks.values())
        free = await self._free(leak.device_id for leak in leaks) if leaks else {}
        for leak in leaks:
            if free.get(leak.device_id, 0) >= leak.free_bytes:
                log.info("leaked memory has come back", model=leak.triton_model, device=leak.device_id)
                await self._book.write(JournalEntry(leak=replace(leak, lost_bytes=0)))
                self._export()

    def _weights(self, name: str) -> dict[str, int]:
        weights: Counter[str] = Counter()
        for deployment in self._book.deployments.values():
            if deployment.plan.triton_model == name:
                for stage in deployment.plan.stages:
                    weights.update(dict.fromkeys(stage.device_ids, stage.weight_bytes))
        return dict(weights)

    async def _free(self, device_ids: Iterable[str]) -> dict[str, int]:
        """Free memory of those that are GPUs."""
        topology = await self._source.read()
        devices = [topology.device(device_id) for device_id in device_ids]
        return {one.id: one.free_memory_bytes for one in devices if one and one.kind is DeviceKind.GPU}

    async def _await_return(self, name: str, weights: Mapping[str, int], before: Mapping[str, int]) -> None:
        wanted = {device_id: free + int(RETURNED_SHARE * weights[device_id]) for device_id, free in before.items()}
        end = self._clock.monotonic() + RETURN_SECONDS
        while short := self._short(await self._free(wanted), wanted):
            if self._clock.monotonic() >= end:
                break
            await self._clock.sleep(POLL_SECONDS)
        for device_id, free in short.items():
            lost = weights[device_id] - max(0, free - before[device_id])
            log.error("memory did not come back", model=name, device=device_id, lost_bytes=lost)
            await self._book.write(JournalEntry(leak=Leak(name, device_id, lost, wanted[device_id])))
        self._export()

    @staticmethod
    def _short(free: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, int]:
        return {device_id: bytes_ for device_id, bytes_ in free.items() if bytes_ < wanted[device_id]}

    def _export(self) -> None:
        lost: Counter[str] = Counter()
        for leak in self._book.leaks.values():
            lost[leak.device_id] += leak.lost_bytes
        _LEAKED.clear()
        for device_id, bytes_ in lost.items():
            _LEAKED.labels(device_id).set(bytes_)
