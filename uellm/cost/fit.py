"""Learns a deployment's step time from what its batches cost.

Each run of decode steps is one sample of base, per row and per context token; what is left of a batch's time is one of
prefill per token and start-up (a prefill has a part that does not depend on its tokens, too: it reads the weights).
Every batch is predicted before it is learnt from, which gives the error and, by quantile tracking, the width that the
intervals need.
"""

from __future__ import annotations

import math
from collections import deque

from uellm.cost.linear import Vector
from uellm.cost.model import INTERVAL, CostModel, Part, half_width, prior_moments
from uellm.cost.regression import Regression, Sample
from uellm.cost.steps import StepTime, Work
from uellm.v1.stream_pb2 import (
    ENGINE_KIND_CONTINUOUS,
    CostModelState,
    DeploymentRecord,
    StepAggregates,
)

SCORED = 50
"""Batches of which error and coverage are told."""
TRACKING = 0.1
"""A batch outside its interval widens the next ones by the exponential of 0.9 times this; one inside narrows them."""
LEAST_SCALE, LARGEST_SCALE = 0.3, 30.0


class CostFit:
    """The cost model of one deployment, as its one writer keeps it."""

    def __init__(self, deployment: DeploymentRecord) -> None:
        """Begin with the deployment's prior."""
        self.deployment = deployment.name
        self.plan_hash = deployment.plan_hash
        self._prior = deployment.step_time_prior
        self._padded = deployment.engine_kind != ENGINE_KIND_CONTINUOUS
        mean, deviation = prior_moments(deployment.step_time_prior)
        self._decode = Regression(mean[:3], deviation[:3])
        self._start = Regression(mean[3:], deviation[3:])
        self._observations = 0
        self._last_batch = ""
        self._scale = 1.0
        self._interval_ratio = 0.0
        self._errors: deque[float] = deque(maxlen=SCORED)
        self._within: deque[bool] = deque(maxlen=SCORED)
        self.model = CostModel.from_prior(deployment.step_time_prior)

    def begins_as(self, deployment: DeploymentRecord) -> bool:
        """Whether a new fit of the deployment would begin as this one did: what was learnt outweighs another prior."""
        if self.plan_hash != deployment.plan_hash:
            return False
        return self._observations > 0 or self._prior == deployment.step_time_prior

    def fold(self, aggregates: StepAggregates, batch_id: str = "") -> bool:
        """Learn from a batch; False if there is nothing in it that can be learnt from."""
        runs = _runs(aggregates, padded=self._padded)
        start = _start(aggregates, padded=self._padded)
        if not runs and start is None:
            return False
        self._score(runs, start)
        self._decode.fold([Sample(work.decode, seconds, work.steps) for work, seconds in runs])
        if start is not None:
            work, seconds = start
            self._start.fold([Sample(work.start, seconds, work.starts)])
        self._observations += 1
        self._last_batch = batch_id
        self._renew()
        return True

    def to_state(self) -> CostModelState:
        """As it is stored; the time is left open."""
        version = self.model.version
        return CostModelState(
            schema_version=1,
            deployment=self.deployment,
            plan_hash=self.plan_hash,
            version=version,
            observations=self._observations,
            last_batch_id=self._last_batch,
            step_time=self.model.step_time.to_prior(version),
            decode=self._decode.to_state(),
            start=self._start.to_state(),
            relative_error=self.model.relative_error,
            relative_errors=self._errors,
            within_interval=self._within,
            interval_scale=self._scale,
            interval_ratio=self._interval_ratio,
        )

    def restore(self, state: CostModelState) -> bool:
        """Go on from what was stored; False, and nothing changes, if it is of another plan or can't be read."""
        if (state.deployment, state.plan_hash) != (self.deployment, self.plan_hash) or not state.observations:
            return False
        try:
            CostModel.from_state(state)
        except (ValueError, ArithmeticError):
            return False
        self._decode.restore(state.decode)
        self._start.restore(state.start)
        self._observations, self._last_batch = state.observations, state.last_batch_id
        self._errors = deque(state.relative_errors, maxlen=SCORED)
        self._within = deque(state.within_interval, maxlen=SCORED)
        self._scale, self._interval_ratio = state.interval_scale, state.interval_ratio
        self._renew()
        return True

    def _score(self, runs: list[tuple[Work, float]], start: tuple[Work, float] | None) -> None:
        """Compare what the model says with what came; the prior's own error is not the fit's."""
        pieces = runs if start is None else [*runs, start]
        work, measured = _sum([work for work, _ in pieces]), sum(seconds for _, seconds in pieces)
        predicted, half = self.model.seconds(work), half_width(self.model.variance(work), INTERVAL)
        self._interval_ratio = self.model.relative_interval(work)
        if not self._observations:
            return
        inside = abs(predicted - measured) <= half
        self._errors.append((predicted - measured) / measured)
        self._within.append(inside)
        scale = self._scale * math.exp(TRACKING * (INTERVAL - inside))
        self._scale = min(max(scale, LEAST_SCALE), LARGEST_SCALE)

    def _renew(self) -> None:
        errors = [abs(error) for error in self._errors]
        self.model = CostModel(
            version=f"fit/{self._observations}",
            step_time=StepTime(*self._decode.posterior.mean, *self._start.posterior.mean),
            decode=_part(self._decode),
            start=_part(self._start),
            scale=self._scale,
            observations=self._observations,
            relative_error=sum(errors) / len(errors) if errors else None,
            coverage=sum(self._within) / len(self._within) if self._within else None,
            interval_ratio=self._interval_ratio,
        )


def _part(regression: Regression) -> Part:
    covariance, information = regression.posterior.covariance, regression.information
    return Part(covariance, information, regression.relative_variance, regression.step_variance)


def _runs(aggregates: StepAggregates, *, padded: bool) -> list[tuple[Work, float]]:
    """Work and seconds of each run of decode steps."""
    found = []
    for run in aggregates.decode:
        if not (run.steps and run.rows and _is_duration(run.seconds)):
            continue
        columns = run.steps * run.first_context + run.steps * (run.steps - 1) / 2
        context = run.rows * columns if padded else run.context_tokens
        found.append((Work(run.steps, run.steps * run.rows, context), run.seconds))
    return found


def _start(aggregates: StepAggregates, *, padded: bool) -> tuple[Work, float] | None:
    """Work and seconds of all that is not decoding; None if there was no prefill."""
    tokens = sum(one.padded_tokens if padded else one.tokens for one in aggregates.prefill)
    prefill = sum(one.seconds for one in aggregates.prefill)
    rest = aggregates.total_seconds - sum(run.seconds for run in aggregates.decode)
    seconds = max(prefill, rest)
    if not tokens or not _is_duration(seconds):
        return None
    return Work(prefill_tokens=tokens, starts=1.0), seconds


def _is_duration(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds > 0


def _sum(works: list[Work]) -> Work:
    features: list[Vector] = [(*work.decode, *work.start) for work in works]
    return Work(*(sum(values) for values in zip(*features, strict=True)))
