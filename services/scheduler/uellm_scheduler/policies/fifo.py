"""First in, first out: batches are filled in order of arrival."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..domain.filling import fill_in_order
from ..domain.policy import Decision, PolicyInfo, QueueView


class Fifo:
    """Fills each free batch with the queries that have waited longest."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "fifo", "Fills batches in order of arrival; knows neither lengths nor deadlines."
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """One batch per free place of each engine, until nothing waits."""
        return fill_in_order(view, np.arange(len(view.slots)))
