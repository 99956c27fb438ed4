"""ODBS: output-driven dynamic batch scheduling, SLO-ODBS without the SLO (UELLM paper; w1 = 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..domain.policy import PolicyInfo
from .slo_odbs import Constants, SloOdbs


@dataclass(frozen=True, slots=True)
class Odbs(SloOdbs):
    """Sorts and joins by predicted length; the batches still run in order of their tightest SLO."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "odbs", "The UELLM paper's ODBS: sorts by predicted length, joins under a threshold on lengths."
    )
    constants: Constants = Constants(slo_weight=0.0)  # noqa: RUF009  (a frozen value)
