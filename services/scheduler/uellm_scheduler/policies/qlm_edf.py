"""QLM-style earliest deadline first, a baseline for comparison.

QLM (Patke et al., SoCC 2024) orders by deadline and estimates how long a query waits: queries ahead of it, times the
mean tokens of an answer, over the tokens per second of the server. Queries that would be late by that estimate stand
behind those that would not, so that they do not make these late as well. Lengths of single queries are not used.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ..domain.backlog import full_rate
from ..domain.filling import due_ms, expected_tokens, fill_in_order
from ..domain.policy import Decision, PolicyInfo, QueueView


class QlmEdf:
    """Earliest deadline first among those that the waiting-time estimate says can be kept, then the others."""

    info: ClassVar[PolicyInfo] = PolicyInfo(
        "qlm-edf", "Earliest deadline first with QLM's waiting-time estimate; what is estimated late goes last."
    )

    def decide(self, view: QueueView, now_ms: int, random: np.random.Generator) -> Decision:  # noqa: ARG002
        """Sort by deadline, estimate each query's end in that order, and fill."""
        due = due_ms(view)
        order = np.argsort(due, kind="stable")
        rate = sum(full_rate(engine) for engine in view.engines)
        if not rate:
            return fill_in_order(view, order)
        # Its own answer is one more than those ahead of it.
        ends = now_ms + 1000 * np.arange(1, len(order) + 1) * float(expected_tokens(view).mean()) / rate
        late = ends > due[order]
        return fill_in_order(view, np.concatenate([order[~late], order[late]]))
