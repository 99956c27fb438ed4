"""Topologies that people saved: what `nvidia-smi topo` printed, or YAML."""

from __future__ import annotations

import re

from uellm.rpc.errors import FieldViolation, InvalidArgumentError
from uellm_deployer.adapters.gpu_catalogue import catalogue
from uellm_deployer.adapters.smi_topology import parse_topology
from uellm_deployer.adapters.yaml_topology import parse_yaml_topology
from uellm_deployer.domain.topology import Topology

_YAML = re.compile(r"^(devices|links|matrix|gpu_model|bandwidths)\s*:", re.MULTILINE)


def read_topology(text: str, gpu_model: str = "", peer_text: str = "") -> Topology:
    """The machine that a text describes.

    Args:
        text: the output of `nvidia-smi topo -m`, of `topo -p2p r`, or of both; or YAML.
        gpu_model: product name of the GPUs where the text does not name them.
        peer_text: the output of `nvidia-smi topo -p2p r`, with a text that has links only.

    Raises:
        InvalidArgumentError: the text is damaged (with line and column, or the path of each field), or the GPU unknown.
    """
    if _YAML.search(text):
        if peer_text:
            raise InvalidArgumentError([FieldViolation("p2p", "YAML has peer access itself: `peer_access: |`")])
        return parse_yaml_topology(text, catalogue(), gpu_model)
    gpu = catalogue().get(gpu_model, "gpu_model") if gpu_model else None
    return parse_topology(text, peer_text, gpu)
