"""Connects to what is measured, puts the peers beside it, and runs the plan."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tritonclient.grpc.aio import InferenceServerClient

from uellm.bench.errors import BenchError
from uellm.bench.experiment import Results, Watcher, measure
from uellm.bench.morphling import QUEUE_DELAYS, space_of, tune
from uellm.bench.peers import BATCHER, DIRECT, MORPHLING, PEERS, Batched, Direct
from uellm.bench.processes import Processes
from uellm.bench.runs import Ask
from uellm.bench.servers import Servers
from uellm.bench.triton import Batching, PeerTriton
from uellm.bench.workload import Workload
from uellm.client import AsyncClient, Endpoints
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_READY, ENGINE_KIND_CONTINUOUS, DeploymentRecord

QUEUE_DELAY_SECONDS = 0.1
"""How long Triton's batcher waits for more where nothing is tuned; a step of the engine takes about as long."""
PEER_TRITON = "peers' triton"


@dataclass(frozen=True, slots=True)
class Target:
    """What is measured."""

    endpoints: Endpoints
    model: str
    pids: Mapping[str, int] = field(default_factory=dict)
    """Of the parts that run on this machine."""
    repository: Path | None = None
    """Models of the Triton of an embedded stack; None: there is none of ours."""
    backend: str = ""


def check_servers(names: Sequence[str], policies: Sequence[str], *, embedded: bool, continuous: bool) -> None:
    """Raises BenchError for a server that there is not, or that can't be driven there."""
    for name in names:
        if name not in policies and name not in PEERS:
            raise BenchError(
                f"{name!r} is neither a policy ({', '.join(sorted(policies))}) nor a peer ({', '.join(PEERS)})"
            )
    if continuous and BATCHER in names:
        raise BenchError(f"{BATCHER} is for static engines; this one batches by itself: take {DIRECT}")
    needing = [name for name in (BATCHER, MORPHLING) if name in names and not continuous]
    if needing and not embedded:
        raise BenchError(
            f"{' and '.join(needing)}: only an embedded stack has a Triton of ours beside it; leave --attach and "
            "--endpoint out, or these peers"
        )


async def drive(target: Target, results: Results, workload: Workload, folder: Path, watcher: Watcher) -> None:
    """Measure; what is complete stands in `results`, also when this is cancelled. The peers' files go to `folder`.

    Raises BenchError, UellmError.
    """
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(target.endpoints, model=target.model))
        records = await _deployments(client, target.model)
        results.deployments = records
        names = results.plan.servers
        continuous = records[0].engine_kind == ENGINE_KIND_CONTINUOUS
        policies = [policy.name for policy in await client.policies()]
        check_servers(names, policies, embedded=target.repository is not None, continuous=continuous)
        pids = dict(target.pids)
        beside = _Beside(stack, target, records, folder, watcher)
        peers: dict[str, Ask] = {}
        if MORPHLING in names:
            rows = records[0].limits.max_batch_rows
            space = space_of(rows, (0.0,) if continuous else QUEUE_DELAYS)
            configure = partial(beside.direct if continuous else beside.batched, MORPHLING)
            results.tuning = await tune(space, configure, workload, results.plan.seed, partial(_tell, watcher))
            peers[MORPHLING] = await configure(results.tuning.chosen)
        if DIRECT in names:
            peers[DIRECT] = await beside.direct(DIRECT)
        if BATCHER in names:
            batching = Batching(records[0].limits.max_batch_rows, QUEUE_DELAY_SECONDS)
            peers[BATCHER] = await beside.batched(BATCHER, batching)
        pids |= beside.pids
        servers = await stack.enter_async_context(Servers(client, peers))
        rows = sum(record.limits.max_batch_rows * max(1, _batches(record)) for record in records)
        await measure(results, servers, workload, Processes(pids), rows, watcher)


class _Beside:
    """Peers beside one stack; what they need is started when the first one needs it."""

    def __init__(
        self,
        stack: contextlib.AsyncExitStack,
        target: Target,
        records: Sequence[DeploymentRecord],
        folder: Path,
        watcher: Watcher,
    ) -> None:
        self.pids: dict[str, int] = {}
        self._stack, self._target, self._records, self._folder = stack, target, records, folder
        self._watcher = watcher
        self._triton: PeerTriton | None = None

    async def direct(self, name: str, batching: Batching | None = None) -> Ask:
        """The stack's engine, with so many requests at once; None: as many as come."""
        if len(self._records) > 1:
            raise BenchError(f"{name} drives one engine, and the model has {len(self._records)} deployments")
        record = self._records[0]
        room = None if batching is None else asyncio.Semaphore(batching.rows)
        client = await self._client(record.triton_endpoint)
        return Direct(client, record.triton_model, record.default_generation, room).ask

    async def batched(self, name: str, batching: Batching) -> Ask:
        """The same engine in a Triton of the peers' own, fed by its dynamic batcher."""
        record = self._records[0]
        if self._triton is None:
            assert self._target.repository is not None
            self._watcher.step("starting the peers' Triton", 0)
            triton = PeerTriton(self._folder, self._target.repository / record.triton_model, self._target.backend)
            self._triton = await asyncio.to_thread(triton.__enter__)
            self._stack.callback(triton.__exit__)
            self.pids[PEER_TRITON] = triton.pid
        model = await asyncio.to_thread(self._triton.batch, name, batching)
        return Batched(await self._client(self._triton.address), model, record.default_generation).ask

    async def _client(self, address: str) -> InferenceServerClient:
        client = InferenceServerClient(address)
        self._stack.push_async_callback(client.close)
        return client


def _batches(record: DeploymentRecord) -> int:
    """Batches that the engine takes beside each other; of a continuous one, requests share the rows."""
    return 1 if record.engine_kind == ENGINE_KIND_CONTINUOUS else record.limits.max_concurrent_batches


def _tell(watcher: Watcher, batching: Batching, queries: int) -> None:
    delay = f", {1000 * batching.queue_delay_seconds:g} ms" if batching.queue_delay_seconds else ""
    watcher.step(f"morphling stress-tests {batching.rows} rows{delay}", queries)


async def _deployments(client: AsyncClient, model: str) -> list[DeploymentRecord]:
    records = [deployment.record for deployment in await client.deployments()]
    found = [one for one in records if one.model == model and one.state == DEPLOYMENT_STATE_READY]
    if not found:
        ready = ", ".join(sorted({one.model for one in records if one.state == DEPLOYMENT_STATE_READY})) or "none"
        raise BenchError(f"no deployment serves {model!r}; models that are served: {ready}")
    return found
