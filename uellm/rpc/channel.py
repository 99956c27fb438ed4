"""Channels for clients of UELLM's services."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_MAX_MESSAGE_BYTES = 64 * 1_048_576

_IDEMPOTENT = {
    "uellm.v1.ProfilerService": ("Profile", "BatchProfile", "DescribePredictor"),
    "uellm.v1.SchedulerService": (
        "Watch",
        "GetQuery",
        "ListQueries",
        "CancelQuery",
        "GetQueue",
        "ExplainQuery",
        "ReadDecisions",
        "ListDeadLetters",
        "ListPolicies",
    ),
    "uellm.v1.DeployerService": (
        "GetTopology",
        "PlanDeployment",
        "PlanFleet",
        "GetDeployment",
        "ListDeployments",
        "WatchDeployment",
        "GetOperation",
    ),
    "grpc.health.v1.Health": ("Check",),
}
"""Methods that may always be repeated. `Submit` and `CreateDeployment` may only with an id chosen by the client."""


@dataclass(frozen=True, slots=True)
class ClientTls:
    """How a client trusts servers and, for mutual TLS, shows who it is."""

    ca: Path | None = None
    """Certificates that sign servers' certificates, PEM. None: the system's."""
    cert: Path | None = None
    """The client's own certificate chain, PEM."""
    key: Path | None = None
    """Its private key, PEM."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files.

        Raises:
            OSError: one of them cannot be read.
        """
        ca, key, cert = (path.read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


def open_channel(target: str, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """Opens a channel; close it after use (`async with`). Connecting happens with the first call.

    UNAVAILABLE is retried for methods that may be repeated, up to four times within the call's own timeout.

    Args:
        target: `host:port`.
        tls: None for plain text.
    """
    if tls is None:
        return grpc.aio.insecure_channel(target, options=channel_options())
    return grpc.aio.secure_channel(target, tls.credentials(), options=channel_options())


def channel_options() -> list[tuple[str, Any]]:
    """Returns the options of `open_channel`, for channels of another make."""
    return [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.service_config", json.dumps(_service_config())),
    ]


def _service_config() -> dict[str, Any]:
    names = [{"service": service, "method": method} for service, methods in _IDEMPOTENT.items() for method in methods]
    policy = {
        "maxAttempts": 5,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {
        "methodConfig": [{"name": names, "retryPolicy": policy}],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
