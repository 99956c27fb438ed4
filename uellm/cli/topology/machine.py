"""A machine, and what is placed on it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uellm.cli.connect import find_deployer
from uellm.cli.errors import needing
from uellm.client import Client
from uellm.v1.deployer_pb2 import Deployment, Device, Topology
from uellm.v1.stream_pb2 import DeploymentState

STDIN = Path("-")

_LONGEST_NAME = 8
_ON_DEVICES = frozenset(DeploymentState.Value(f"DEPLOYMENT_STATE_{name}") for name in ("CREATING", "READY", "DRAINING"))


@dataclass(frozen=True, slots=True)
class Placed:
    """Layers of a deployment on one device."""

    deployment: str
    model: str
    device: str
    first_layer: int
    layer_count: int
    planned_bytes: int
    group_size: int = 1
    """Devices that share each of these layers."""

    @property
    def layers(self) -> str:
        """`layer 3`, `layers 0-15`, `1/2 of layers 0-15`."""
        last = self.first_layer + self.layer_count - 1
        layers = f"layers {self.first_layer}-{last}" if self.layer_count > 1 else f"layer {self.first_layer}"
        return layers if self.group_size == 1 else f"1/{self.group_size} of {layers}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a deployer or a file tells of a machine."""

    topology: Topology
    placed: tuple[Placed, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """By id: the id if it is short, else kind and number, as nvidia-smi counts."""
        names: dict[str, str] = {}
        for kind in ("gpu", "nic", "cpu"):
            ids = [device.id for device in self.topology.devices if device.kind == kind]
            short = all(len(one) <= _LONGEST_NAME for one in ids)
            names |= {one: one if short else f"{kind.upper()}{number}" for number, one in enumerate(ids)}
        return names

    def on(self, device: Device) -> list[Placed]:
        """What is placed on a device."""
        return [one for one in self.placed if one.device == device.id]


def from_deployer(state: Path) -> Machine:
    """The machine of the running deployer. Raises NotRunningError, UellmError."""
    endpoints, model = find_deployer(state)
    with Client(endpoints, model=model) as client:
        return Machine(client.topology(), tuple(_placed(client.deployments())))


def from_file(file: Path, gpu_model: str, p2p: Path | None) -> Machine:
    """A machine that a file describes; `-` is stdin. Raises MissingExtraError, InvalidArgumentError, OSError."""
    with needing("deployer"):
        from uellm_deployer.adapters.topology_file import read_topology
        from uellm_deployer.encoding import topology_message
    return Machine(topology_message(read_topology(_text(file), gpu_model, _text(p2p) if p2p else "")))


def _text(file: Path) -> str:
    # What is no UTF-8 in a paste is in no matrix: the parser says what is missing.
    return sys.stdin.read() if file == STDIN else file.read_text(encoding="utf-8-sig", errors="replace")


def _placed(deployments: Iterable[Deployment]) -> Iterable[Placed]:
    for one in deployments:
        if one.state not in _ON_DEVICES:
            continue
        for stage in one.plan.stages:
            size = stage.weight_bytes + stage.kv_bytes + stage.reserve_bytes
            for device in stage.device_ids:
                model, group = one.plan.spec.model, len(stage.device_ids)
                yield Placed(one.name, model, device, stage.first_layer, stage.layer_count, size, group)
