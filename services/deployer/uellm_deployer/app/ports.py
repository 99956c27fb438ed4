"""What the use cases need of the outside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from uellm_deployer.domain.deployment import Deployment, Operation
from uellm_deployer.domain.facts import ModelShape
from uellm_deployer.domain.leak import Leak
from uellm_deployer.domain.plan import DeploymentPlan
from uellm_deployer.domain.topology import Topology

UNLOAD_TIMEOUT = "UNLOAD_TIMEOUT"
"""Reason of the UnavailableError for a model that does not go."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A change of one deployment, of one operation, or of both, written before it is made."""

    operation: Operation | None = None
    deployment: Deployment | None = None
    removed: str = ""
    """Resource name of a deployment that is gone for good."""
    leak: Leak | None = None
    """Memory that is lost, or has come back."""


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """A model of the repository: contents by path relative to its folder."""

    name: str
    files: Mapping[str, bytes]
    engine: RepositoryEntry | None = None
    """A second Triton model that this one speaks to, `engine_model(name)`: it comes before it and goes after it."""

    @property
    def digest(self) -> str:
        """SHA-256 of all paths and contents."""
        digest = hashlib.sha256()
        for path in sorted(self.files):
            for part in (path.encode(), self.files[path]):
                digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a loaded engine says of itself, and what a first inference showed."""

    weight_bytes: int
    kv_bytes_per_token: int
    step_seconds: float
    """Of a decode step with one row; 0: not measured."""
    kv_budget_bytes: int = 0
    """What its key-value cache holds; 0: it is not allocated beforehand."""


class Clock(Protocol):
    """Time."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class TopologySource(Protocol):
    """Reads the machine."""

    async def read(self) -> Topology:
        """Devices and links, with the memory that is free now."""


class ModelLibrary(Protocol):
    """Reads model folders."""

    async def shape(self, weights_path: str) -> ModelShape:
        """What the model is; InvalidArgumentError if it cannot be deployed."""


class Journal(Protocol):
    """Append-only memory that survives a crash."""

    def entries(self) -> Sequence[JournalEntry]:
        """What was there at the start, oldest first."""

    async def append(self, entry: JournalEntry) -> None:
        """Returns when the entry is on disk."""


class Renderer(Protocol):
    """Turns plans into what Triton reads."""

    def render(self, plan: DeploymentPlan) -> RepositoryEntry:
        """The repository entry of a plan, checked."""


class Repository(Protocol):
    """Triton's model repository. All methods may be repeated."""

    async def stage(self, entry: RepositoryEntry) -> None:
        """Write an entry beside the repository, down to the disk."""

    async def install(self, name: str) -> None:
        """Move a staged entry into the repository in one step."""

    async def touch(self, name: str) -> None:
        """Make an installed entry look new: Triton does not load again what it calls ready and finds unchanged."""

    async def remove(self, name: str) -> None:
        """Take an entry away, staged or installed; nothing if there is none."""

    def contains(self, name: str) -> bool:
        """Whether the entry is installed."""

    async def read(self, name: str) -> RepositoryEntry:
        """An installed entry as it lies there; without files if there is none."""

    def entries(self) -> frozenset[str]:
        """The entries that are installed."""


class ModelServer(Protocol):
    """Triton. All methods raise UnavailableError if it cannot be reached."""

    async def ready_models(self) -> frozenset[str]:
        """The models that answer now."""

    async def load(self, name: str) -> None:
        """Load a model and wait until it is ready; FailedPreconditionError with Triton's reason otherwise."""

    async def unload(self, name: str) -> None:
        """Unload a model and wait until it is gone; nothing if it is not loaded.

        Raises UnavailableError with the reason `UNLOAD_TIMEOUT` if it does not go.
        """

    async def verify(self, name: str, plan_hash: str) -> EngineReport:
        """Compare the plan hash and run a first inference; FailedPreconditionError says what is wrong."""

    async def batches_running(self, name: str) -> int:
        """Batches on the engine; 0 if the model is not loaded."""


class TritonHost(Protocol):
    """Whoever has started Triton's process, and can start it again."""

    async def environment(self) -> Mapping[str, str]:
        """What is known of the environment of Triton's process; UnavailableError if the host does not answer."""

    async def check(self) -> None:
        """Raise what would keep `restart` from beginning.

        Raises:
            FailedPreconditionError: this host cannot; the message says what to do instead.
            UnavailableError: it does not answer.
        """

    async def restart(self) -> None:
        """End Triton's process and start it; returns when the old one has ended. Errors as of `check`."""


class Publisher(Protocol):
    """Tells the other services."""

    async def publish(self, deployment: Deployment) -> None:
        """Write or renew the deployment's record."""

    async def withdraw(self, name: str) -> None:
        """Remove the record of a deployment."""

    async def differing(self, wanted: Sequence[Deployment]) -> Mapping[str, str]:
        """By resource name, in words: what is published of this Triton that is not wanted, or otherwise."""

    async def drained(self, deployment: Deployment) -> bool:
        """Whether the scheduler knows that it is DRAINING, and has nothing in flight on it."""
