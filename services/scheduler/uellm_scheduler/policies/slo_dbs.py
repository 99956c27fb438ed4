"""SLO-DBS: SLO-driven dynamic batch scheduling, SLO-ODBS without the output length (UELLM paper; w2 = 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..domain.policy import PolicyInfo
from .slo_odbs import Constants, SloOdbs


@dataclass(frozen=True, slots=True)
class SloDbs(SloOdbs):
    """Sorts and joins by SLO only."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "slo-dbs", "The UELLM paper's SLO-DBS: sorts by SLO, joins under a threshold on SLOs."
    )
    constants: Constants = Constants(length_weight=0.0)  # noqa: RUF009  (a frozen value)
