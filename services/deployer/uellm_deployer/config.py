"""What the deployer is configured with."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from uellm.rpc.config import Address
from uellm.rpc.settings import ServiceSettings


class DeployerSettings(ServiceSettings):
    """Settings of the LLM deployer."""

    listen: Address = Field(default="127.0.0.1:50053", min_length=1, examples=["127.0.0.1:50053"])
    """Address of the gRPC server, host:port. Port 0 takes a free one."""
    repository: Path = Field(examples=["/var/lib/uellm/repository"])
    """Folder of which `models/` is Triton's model repository; `staging/` and `journal/` lie beside it."""
    repository_in_triton: Path | None = Field(default=None, examples=["/repository"])
    """Where Triton sees the folder `--repository`, for weights that lie in it. Not set: at the same path."""
    triton_endpoint: Address = Field(default="127.0.0.1:8001", min_length=1, examples=["127.0.0.1:8001"])
    """Triton's gRPC endpoint, host:port, as the deployer reaches it."""
    triton_published_endpoint: Address = Field(default="", examples=["triton:8001"])
    """Triton's gRPC endpoint as the scheduler reaches it. Empty: `--triton-endpoint`."""
    triton_control_key: str = Field(default="", pattern="[a-z0-9_.-]*", examples=["uellm-control"])
    """Key of Triton's `--grpc-restricted-protocol=...:<key>=<secret>`. Empty: model control is not restricted."""
    triton_control_secret: SecretStr = Field(default=SecretStr(""), examples=["a-long-random-text"])
    """Secret of the same flag. Better set by environment than by flag."""
    load_timeout_seconds: float = Field(default=1800.0, gt=0, examples=[1800])
    """How long Triton may take to load a model, in seconds."""
    monitor_window_seconds: float = Field(default=300.0, gt=0, examples=[300])
    """How long a load must outgrow a deployment until another plan is looked for, in seconds."""
