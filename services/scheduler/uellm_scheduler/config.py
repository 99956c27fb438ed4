"""Configuration of the scheduler."""

from __future__ import annotations

import os
import socket

from pydantic import Field, field_validator

from uellm.rpc.settings import ServiceSettings

from .policies import POLICIES


def _replica() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class SchedulerSettings(ServiceSettings):
    """What the scheduler is configured with."""

    listen: str = Field(default="127.0.0.1:50052", min_length=1, examples=["127.0.0.1:50052"])
    """Address of the gRPC server, host:port. Port 0 takes a free one."""
    policy: str = Field(default="uellm", examples=["uellm"])
    """Batching policy, until another one is chosen for a queue (docs/policies.md)."""
    replica: str = Field(default_factory=_replica, min_length=1, max_length=128, examples=["scheduler-0"])
    """Name of this replica, different from every other's. Default: host name and process id."""
    lease_seconds: float = Field(default=5.0, ge=0.5, le=60, examples=[5])
    """How long a queue stays owned by a replica that is not heard of any more, in seconds."""
    max_attempts: int = Field(default=5, ge=1, le=100, examples=[5])
    """How often a query is dispatched at most."""
    engine_stall_seconds: float = Field(default=120.0, ge=1, examples=[120])
    """An engine that says nothing about a batch for this long has lost it, in seconds."""
    queue_limit: int = Field(default=10_000, ge=1, examples=[10_000])
    """Queries of one model that may wait or run at once, as the profiler has it; a replay above it gets QUEUE_FULL."""
    retention_seconds: float = Field(default=3_600.0, ge=60, examples=[3_600])
    """How long outcomes and events can be read after the end of a query, in seconds."""

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if policy not in POLICIES:
            raise ValueError(f"must be one of {', '.join(POLICIES)}")
        return policy
