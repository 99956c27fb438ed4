"""The batching policies, one file each. `POLICIES` is the register."""

from __future__ import annotations

from ..domain.policy import Policy
from .fifo import Fifo
from .slo_odbs import SloOdbs

POLICIES: dict[str, Policy] = {policy.info.name: policy for policy in (Fifo(), SloOdbs())}
