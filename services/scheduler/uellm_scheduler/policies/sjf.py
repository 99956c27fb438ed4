"""Shortest job first, by the predicted median. With oracle predictions it is the classic with known lengths."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..domain.filling import expected_tokens, fill_in_order
from ..domain.policy import Decision, PolicyInfo, QueueView


class Sjf:
    """Fills batches in order of the tokens that are still expected; long answers may starve."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "sjf", "Shortest predicted answer first; least mean latency, no deadlines, long answers may starve."
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Sort by expected tokens, stable in order of arrival, and fill."""
        return fill_in_order(view, np.argsort(expected_tokens(view), kind="stable"))
