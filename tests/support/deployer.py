"""The deployer's use cases around a real repository and journal, with fakes for Triton, Redis and the machine."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uellm_deployer.adapters.journal import FileJournal
from uellm_deployer.adapters.repository import ModelRepository
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.app.book import Book, compacted
from uellm_deployer.app.creation import CreateDeployment, Creation
from uellm_deployer.app.host import RestartTriton
from uellm_deployer.app.keeper import Keeper
from uellm_deployer.app.memory import MemoryWatch
from uellm_deployer.app.operations import Operations, Request
from uellm_deployer.app.planning import Planning
from uellm_deployer.app.ports import EngineReport, RepositoryEntry
from uellm_deployer.app.reconcile import Reconcile
from uellm_deployer.app.removal import DeleteDeployment, Removal
from uellm_deployer.app.rollback import RollbackDeployment
from uellm_deployer.app.traffic import SetTraffic
from uellm_deployer.domain.deployment import Deployment, Operation, State
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.topology import Device, DeviceKind, Topology
from uellm_deployer.encoding import record_message
from uellm_deployer.server import DeployerServicer

from uellm.rpc.errors import FailedPreconditionError

GIB = 1 << 30

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SHAPE = replace(model_shape(CONFIG, (), "f" * 64), has_weights=True, tied_head=False)
"""SmolLM2-135M, as if no engine held its head twice."""

CPU = Device("cpu0", DeviceKind.CPU, "a processor", 32 * GIB, 24 * GIB, 20e9, 100e9, 0)


def gpu(device_id: str, free_gib: float = 80, bandwidth: float = 3e12) -> Device:
    return Device(device_id, DeviceKind.GPU, "a GPU", 80 * GIB, int(free_gib * GIB), bandwidth, 900e12, 0, "0:1:0.0")


def machine(*devices: Device) -> Topology:
    return Topology(devices or (CPU,), (), "test")


def a_spec(**changes: Any) -> DeploymentSpec:
    return replace(DeploymentSpec(model="smol", weights_path="/models/smol", context_tokens=2048), **changes)


class VirtualClock:
    """Time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return 1_700_000_000.0 + self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


class Faults:
    """Makes named steps fail, once or always."""

    def __init__(self) -> None:
        self.armed: dict[str, tuple[BaseException, bool]] = {}

    def arm(self, step: str, error: BaseException, *, always: bool = False) -> None:
        self.armed[step] = (error, always)

    def strike(self, step: str) -> None:
        if step in self.armed:
            error, always = self.armed[step]
            if not always:
                del self.armed[step]
            raise error


class FakeTriton:
    """Loads whatever lies in the repository."""

    def __init__(self, repository: ModelRepository, faults: Faults) -> None:
        self._repository = repository
        self._faults = faults
        self.loaded: set[str] = set()
        self.most_loaded: int | None = None
        """Loads beyond fail."""
        self.busy = 0
        self.report = EngineReport(SHAPE.facts(4).weight_bytes, SHAPE.facts(4).kv_bytes_per_token, 0.09)

    async def ready_models(self) -> frozenset[str]:
        self._faults.strike("index")
        return frozenset(self.loaded)

    async def load(self, name: str) -> None:
        self._faults.strike("load")
        if not self._repository.contains(name):
            raise FailedPreconditionError(name, f"{name} is not in the repository")
        if self.most_loaded is not None and len(self.loaded) >= self.most_loaded:
            raise FailedPreconditionError(name, "no more", reason="LOAD_FAILED")
        self.loaded.add(name)
        self._faults.strike("load late")

    async def unload(self, name: str) -> None:
        self._faults.strike("unload")
        self.loaded.discard(name)

    async def verify(self, name: str, plan_hash: str) -> EngineReport:
        self._faults.strike("verify")
        assert name in self.loaded
        assert name.endswith(plan_hash)
        return self.report

    async def batches_running(self, name: str) -> int:
        return self.busy if name in self.loaded else 0


class FakeHost:
    """Restarts the fake Triton, which has lost its models then."""

    def __init__(self, faults: Faults, triton: FakeTriton) -> None:
        self._faults = faults
        self._triton = triton
        self.restarts = 0

    async def environment(self) -> dict[str, str]:
        return {}

    async def check(self) -> None:
        self._faults.strike("host")

    async def restart(self) -> None:
        self._triton.loaded.clear()
        self._faults.armed.pop("unload", None)
        self.restarts += 1


@dataclass
class FakePublisher:
    """What is published now, and every state that ever was."""

    faults: Faults
    records: dict[str, Deployment] = field(default_factory=dict)
    history: list[tuple[str, State]] = field(default_factory=list)
    is_drained: Callable[[], bool] = lambda: True

    async def publish(self, deployment: Deployment) -> None:
        self.faults.strike("publish")
        self.records[deployment.name] = deployment
        self.history.append((deployment.name, deployment.state))
        self.faults.strike("publish late")

    async def withdraw(self, name: str) -> None:
        self.faults.strike("withdraw")
        self.records.pop(name, None)

    async def differing(self, wanted: Sequence[Deployment]) -> dict[str, str]:
        names = {one.name for one in wanted}
        kept = [(self.records[one.name], one) for one in wanted if one.name in self.records]
        other = {one.name for was, one in kept if record_message(was, "") != record_message(one, "")}
        extra, missing = self.records.keys() - names, names - self.records.keys()
        return dict.fromkeys(extra, "extra") | dict.fromkeys(missing, "missing") | dict.fromkeys(other, "other")

    async def drained(self, deployment: Deployment) -> bool:
        return self.is_drained()


class FaultyRepository(ModelRepository):
    """The real one, with faults."""

    faults: Faults

    async def stage(self, entry: RepositoryEntry) -> None:
        self.faults.strike("stage")
        await super().stage(entry)
        self.faults.strike("stage late")

    async def install(self, name: str) -> None:
        self.faults.strike("install")
        await super().install(name)
        self.faults.strike("install late")

    async def remove(self, name: str) -> None:
        self.faults.strike("remove")
        await super().remove(name)


class FakeLibrary:
    """Every folder holds the same model."""

    def __init__(self) -> None:
        self.found = SHAPE

    async def shape(self, weights_path: str) -> ModelShape:
        return replace(self.found, fingerprint=weights_path)


class FakeMachine:
    """A machine that can be changed."""

    def __init__(self) -> None:
        self.topology = machine()

    async def read(self) -> Topology:
        return self.topology


class DeployerWorld:
    """The deployer's use cases; `restarted` is the same disk, Triton and Redis with a new process."""

    def __init__(self, root: Path, before: DeployerWorld | None = None) -> None:
        self.root = root
        self.faults = Faults()
        self.clock = VirtualClock()
        self.repository = FaultyRepository(root)
        self.repository.faults = self.faults
        self.triton = before.triton if before else FakeTriton(self.repository, self.faults)
        self.publisher = before.publisher if before else FakePublisher(self.faults)
        self.triton._faults = self.publisher.faults = self.faults
        self.machine, self.library = FakeMachine(), FakeLibrary()
        self.book = Book(FileJournal(root / "journal", compacted))
        ids = itertools.count(len(self.book.operations) + 1)
        self.operations = Operations(self.book, self.clock, lambda: str(next(ids)))
        self.planning = Planning(self.book, self.machine, self.library, HelrPlanner())
        self.memory = MemoryWatch(self.triton, self.book, self.machine, self.clock)
        outside = (self.repository, self.memory, self.publisher)
        self.removal = Removal(self.book, *outside, self.clock)
        self.renderer = TritonRenderer(root)
        self.creation = CreateDeployment(
            self.book, self.operations, self.planning, self.removal, self.renderer, *outside, self.clock
        )
        self.deletion = DeleteDeployment(self.book, self.operations, self.removal)
        self.rollback = RollbackDeployment(self.book, self.operations, self.creation)
        self.traffic = SetTraffic(self.book, self.operations, self.publisher)
        self.host = FakeHost(self.faults, self.triton)
        self.restart = RestartTriton(self.book, self.removal, self.triton, self.publisher, self.host, self.clock)
        self.keeper = Keeper(self.book, self.operations, self.removal, self.renderer, *outside, self.restart)
        self.reconcile = Reconcile(self.book, self.operations, self.keeper, *outside, self.restart)

    async def create(self, deployment_id: str = "one", request: Request | None = None, **spec: Any) -> Operation:
        """Create a deployment and wait for the end of the operation."""
        return await self.finish(
            self.creation.create(Creation(deployment_id, a_spec(**spec)), request or Request("", ""))
        )

    async def delete(self, name: str, drain_timeout: float | None = None) -> Operation:
        """Delete a deployment and wait for the end of the operation."""
        return await self.finish(self.deletion.delete(name, "", Request("", ""), drain_timeout))

    async def finish(self, beginning: Awaitable[Operation]) -> Operation:
        """Wait for the end of an operation."""
        operation = await beginning
        await asyncio.gather(*self.operations._tasks, return_exceptions=True)
        return self.book.operation(operation.name)

    def servicer(self) -> DeployerServicer:
        """What answers calls."""
        parts = (self.creation, self.deletion, self.traffic, self.rollback, self.reconcile)
        return DeployerServicer(self.book, self.planning, *parts, "t:1")

    def restarted(self) -> DeployerWorld:
        """Kill this process and start another."""
        self.repository.close()
        return DeployerWorld(self.root, self)

    def files(self) -> set[str]:
        """Everything in `models/` and `staging/`."""
        return {
            path.relative_to(self.root).as_posix()
            for folder in ("models", "staging")
            for path in (self.root / folder).rglob("*")
        }


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: name -> dtype, shape, bytes."""
    import json

    entries, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(offset)
