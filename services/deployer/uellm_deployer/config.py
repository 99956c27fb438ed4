"""What the deployer is configured with."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

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
    triton_host: Literal["fixed", "local", "compose"] = Field(default="fixed", examples=["compose"])
    """Who can start Triton again: `fixed`: nobody that the deployer knows; `local`: the `uellm up` of
    `--triton-state`; `compose`: the Docker Engine behind `--docker-socket`."""
    triton_visible_devices: str = Field(default="", examples=["2,3"])
    """Triton's `CUDA_VISIBLE_DEVICES`, if it has one and its host is `fixed`. Empty: it sees all GPUs."""
    triton_state: Path | None = Field(default=None, examples=[".uellm"])
    """State folder of the stack that runs Triton, for `--triton-host local`."""
    docker_socket: Path = Field(default=Path("/var/run/docker.sock"), examples=["/var/run/docker.sock"])
    """Socket of the Docker Engine, for `--triton-host compose`. Whoever reaches it rules the machine."""
    triton_container: str = Field(default="", pattern="[a-zA-Z0-9_.-]*", examples=["uellm-triton-1"])
    """Name of Triton's container, for `--triton-host compose`. Empty: the one of Compose's service `triton`."""

    @model_validator(mode="after")
    def _host_is_complete(self) -> Self:
        if self.triton_host == "local" and self.triton_state is None:
            raise ValueError("--triton-host local needs --triton-state, the state folder of the `uellm up`")
        return self
