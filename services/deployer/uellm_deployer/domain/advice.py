"""Which of some plans would be better than what serves now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from uellm_deployer.domain.deployment import Strategy
from uellm_deployer.domain.load import Load
from uellm_deployer.domain.performance import Performance
from uellm_deployer.domain.plan import DeploymentPlan

WORTH = 1.25
"""Times the present rate from which on a change is recommended: 20 % less time for a token."""
STILL_WORTH = 1.1
"""Times the present rate down to which a recommendation stands, and by which another one must beat it."""
SET_RIGHT = 0.99
"""Share of the wanted rate that counts as all of it."""
HEADROOM = 0.9
"""Share of its capacity that a plan is to be loaded with at most."""


class Cause(StrEnum):
    """Why a plan is not right any more."""

    STEP_TIME = "step_time"
    """Steps take longer than planned."""
    LOAD = "load"
    """More comes than can be served."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan, and what would serve the queue if it were carried out."""

    plan: DeploymentPlan
    strategy: Strategy
    step_seconds: float
    """Expected, of a full batch whose rows are half way through their context."""
    rate: float
    """Tokens a second of full batches, of all that would serve the queue."""
    devices: int
    """That would serve the queue."""

    def same_change(self, other: Candidate) -> bool:
        """Whether both are the same plan, put in place in the same way."""
        return (self.plan.plan_hash, self.strategy) == (other.plan.plan_hash, other.strategy)


@dataclass(frozen=True, slots=True)
class Situation:
    """A deployment whose plan is not right any more, and the queue that it serves."""

    performance: Performance
    others: tuple[Performance, ...]
    """The other deployments that serve the queue."""
    causes: frozenset[Cause]
    load: Load | None = None

    @property
    def rate(self) -> float:
        """Tokens a second of full batches, of all that serve the queue."""
        return self.performance.rate + sum(one.rate for one in self.others)

    @property
    def wanted_rate(self) -> float:
        """What would set it right: the load with headroom, and what was planned."""
        wanted = 0.0
        if Cause.STEP_TIME in self.causes:
            wanted = self.performance.ratio * self.performance.rate + sum(one.rate for one in self.others)
        if Cause.LOAD in self.causes and self.load is not None:
            wanted = max(wanted, max(1.0, self.load.offered or 0.0) * self.rate / HEADROOM)
        return wanted

    def set_right_by(self, candidate: Candidate) -> bool:
        """Whether nothing would be amiss any more."""
        return candidate.rate >= SET_RIGHT * self.wanted_rate


def choose(
    situation: Situation, candidates: Sequence[Candidate], standing: Candidate | None = None
) -> Candidate | None:
    """The cheapest that sets it right, else the one with the highest rate; None: none is worth a change.

    Cheapest: fewest devices, then fewest rows, which keeps a step short. `standing` is what was recommended before; it
    stays while it is worth it and no other is much better.
    """
    worth = WORTH if standing is None else STILL_WORTH
    better = [one for one in candidates if one.rate >= worth * situation.rate]
    if not better:
        return None
    right = [one for one in better if situation.set_right_by(one)]
    best = min(right, key=_price) if right else max(better, key=lambda one: (one.rate, [-key for key in _price(one)]))
    if standing is not None:
        same = next((one for one in better if one.same_change(standing)), None)
        if same is not None and best.rate < STILL_WORTH * same.rate:
            return same
    return best


def _price(candidate: Candidate) -> tuple[int, int, float]:
    return candidate.devices, candidate.plan.spec.max_batch_rows, -candidate.rate
