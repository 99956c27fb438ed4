"""Earliest deadline first (Liu and Layland 1973): optimal on one machine without batches while nothing is late."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..domain.filling import due_ms, fill_in_order
from ..domain.policy import Decision, PolicyInfo, QueueView


class Edf:
    """Fills batches in order of the completion deadline; best effort comes last, in order of arrival."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "edf", "Earliest deadline first; knows no lengths, and serves late what cannot be kept any more."
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Sort by deadline, stable in order of arrival, and fill."""
        return fill_in_order(view, np.argsort(due_ms(view), kind="stable"))
