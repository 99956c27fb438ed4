"""Linear layers for the CPU with weights packed once into oneDNN's blocked layout.

PyTorch's own float32 product of a few rows with a large matrix reaches a fraction of the memory bandwidth, which is
what bounds a decode step; the packed one reads each weight once, at about twice the speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

HINTED_ROWS = 8  # the row count that the layout is chosen for; other counts are correct too
PACKABLE = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """Computes what the linear layer that it replaces computes; inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer(
            "weight", _mkldnn("_reorder_linear_weight")(linear.weight.detach(), HINTED_ROWS), persistent=False
        )
        self.bias = linear.bias
        self._product = _mkldnn("_linear_pointwise")

    def forward(self, states: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        result: Tensor = self._product(states, self.weight, self.bias, "none", [], "")
        return result


def _mkldnn(name: str) -> Any:
    """An operator of torch's oneDNN binding, the ones that its compiler uses for frozen weights."""
    return getattr(torch.ops.mkldnn, name)


def pack_linear_layers(model: nn.Module) -> int:
    """Replace the plain linear layers that lie on the CPU; returns how many. A no-op where torch lacks oneDNN."""
    if not torch._C._has_mkldnn:  # noqa: SLF001
        return 0
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype in PACKABLE
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)
