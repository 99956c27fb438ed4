"""Where the services answer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from uellm.rpc.channel import channel_options

DEFAULT_MODEL = "smollm2-135m"
"""The logical model that `uellm up` deploys."""

DEFAULT_TENANT = "local"

RECONNECT_OPTIONS: list[tuple[str, Any]] = [
    # Else a channel waits up to two minutes before it looks again for a service that was restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """`host:port` of each service."""

    profiler: str = "127.0.0.1:50051"
    scheduler: str = "127.0.0.1:50052"
    deployer: str = "127.0.0.1:50053"

    @classmethod
    def from_environment(cls) -> Endpoints:
        """`UELLM_PROFILER`, `UELLM_SCHEDULER` and `UELLM_DEPLOYER`, else the ports of a local stack."""
        given = {name: os.environ.get(f"UELLM_{name.upper()}", "") for name in ("profiler", "scheduler", "deployer")}
        return cls(**{name: endpoint for name, endpoint in given.items() if endpoint})


def client_channel_options() -> list[tuple[str, Any]]:
    """Options of a client's channels."""
    return [*channel_options(), *RECONNECT_OPTIONS]
