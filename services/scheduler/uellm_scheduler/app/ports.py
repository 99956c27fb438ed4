"""What the shell needs from the outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from uellm.v1.stream_pb2 import DeploymentRecord

from .effects import RunBatch
from .events import EngineNews


class EngineError(Exception):
    """An engine refused a batch, or was lost; the message says why."""


class Engines(Protocol):
    """The engines on which batches run."""

    def run(self, batch: RunBatch, fence_epoch: int) -> AsyncGenerator[EngineNews, None]:
        """Run a batch; raises EngineError. Closing the iterator ends the batch."""

    async def cancel(self, deployment: DeploymentRecord, batch_id: str, names: Sequence[str]) -> None:
        """Ask for the end of some rows; raises EngineError."""

    async def ready(self, deployment: DeploymentRecord) -> bool:
        """Whether the deployment can serve now."""
