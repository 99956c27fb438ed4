"""What is known of an engine's step time, as its readers see it: coefficients with their uncertainty and error.

Plain Python: reading a model and computing a batch's time need no numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from uellm.cost.linear import Matrix, Vector, condition_number, diagonal
from uellm.cost.regression import FIRST_NOISE, FIRST_STEP_NOISE, Posterior, information_of
from uellm.cost.steps import StepTime, Work
from uellm.v1.stream_pb2 import CostModelState, DeploymentRecord, RegressionState, StepTimePrior

PRIOR_SPREAD = 0.5
"""Standard deviation of a prior's coefficient, relative to it."""
LEAST_SHARES = (0.1, 0.01, 1e-5, 0.01, 1.0)
"""A prior's coefficient is taken as uncertain as one of at least this share of its base: rooflines know no start-up."""
UNKNOWN = StepTime(base=1.0, per_row=0.1, per_context_token=1e-4, prefill_per_token=0.01, startup=1.0)
"""Magnitudes within which the coefficients lie where there is no prior at all."""
INTERVAL = 0.9
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of some of the coefficients, and the noise around them."""

    covariance: Matrix
    information: Matrix
    """What the data alone say."""
    relative_variance: float
    step_variance: float
    """Of a step's absolute noise, in square seconds."""


@dataclass(frozen=True)
class CostModel:
    """Step time of a deployment. Immutable."""

    version: str
    """`fit/{batches learnt from}` or `prior/{source}`."""
    step_time: StepTime
    decode: Part
    """Base, per row, per context token."""
    start: Part
    """Prefill per token, start-up."""
    scale: float = 1.0
    """By how much intervals are widened so that 90 % of batches lie within."""
    observations: int = 0
    """Batches learnt from."""
    relative_error: float | None = None
    """Mean relative error of the last batches, each predicted before it was learnt from."""
    coverage: float | None = None
    """Share of the same batches within their 90 % interval."""
    interval_ratio: float = 0.0
    """Half width of the last batch's 90 % interval, relative to its predicted time."""

    @classmethod
    def from_prior(cls, prior: StepTimePrior) -> CostModel:
        """What is known before anything was measured."""
        mean, deviation = prior_moments(prior)
        return cls(
            version=f"prior/{prior.source}" if prior.source else "prior",
            step_time=StepTime(*mean),
            decode=_prior_part(deviation[:3]),
            start=_prior_part(deviation[3:]),
        )

    @classmethod
    def from_state(cls, state: CostModelState) -> CostModel:
        """What was learnt; raises ValueError if the state is none."""
        decode, start = Posterior.of_state(state.decode), Posterior.of_state(state.start)
        if (len(decode.mean), len(start.mean)) != (3, 2):
            raise ValueError("a cost model has three coefficients of decoding and two of the start")
        within = state.within_interval
        return cls(
            version=state.version,
            step_time=StepTime(*decode.mean, *start.mean),
            decode=_part(decode, state.decode),
            start=_part(start, state.start),
            scale=state.interval_scale,
            observations=state.observations,
            relative_error=state.relative_error if state.HasField("relative_error") else None,
            coverage=sum(within) / len(within) if within else None,
            interval_ratio=state.interval_ratio,
        )

    @classmethod
    def of(cls, deployment: DeploymentRecord, state: CostModelState | None) -> CostModel:
        """What was learnt of a deployment, or its prior, if the state is of another plan or can't be read."""
        if state is not None and (state.deployment, state.plan_hash) == (deployment.name, deployment.plan_hash):
            try:
                return cls.from_state(state)
            except (ValueError, ArithmeticError):
                pass
        return cls.from_prior(deployment.step_time_prior)

    def seconds(self, work: Work) -> float:
        """Expected time."""
        return self.step_time.seconds(work)

    def variance(self, work: Work) -> float:
        """Variance of the time of known work, of the coefficients and of the noise; in square seconds."""
        return self.moments(*work.decode, *work.start)[1]

    def moments(
        self, steps: float, row_steps: float, context_tokens: float, prefill_tokens: float, starts: float
    ) -> tuple[float, float]:
        """Expected time and its variance; arguments as of `Work`. Called for every knot of every distribution.

        Relative noise is one and the same for all of a batch's steps.
        """
        (base, per_row, per_token, prefill, startup), (bb, rr, cc, br, bc, rc), (pp, ss, ps), noise = self._flat
        decoding = base * steps + per_row * row_steps + per_token * context_tokens
        starting = prefill * prefill_tokens + startup * starts
        known = steps * (bb * steps + br * row_steps + bc * context_tokens)
        known += row_steps * (rr * row_steps + rc * context_tokens) + cc * context_tokens * context_tokens
        known += prefill_tokens * (pp * prefill_tokens + ps * starts) + ss * starts * starts
        around = noise[0] * decoding * decoding + noise[1] * steps + noise[2] * starting * starting + noise[3] * starts
        return decoding + starting, max(0.0, known) + around

    @cached_property
    def _flat(self) -> tuple[Vector, Vector, Vector, Vector]:
        """Coefficients, the two covariances (squares, then doubled products) and the noise, as intervals need them."""
        step, decode, start = self.step_time, self.decode, self.start
        # A scale below 1 speaks of the noise only: what was not learnt stays unknown.
        wide, scale = max(1.0, self.scale) ** 2, self.scale**2
        (bb, br, bc), (_, rr, rc), (_, _, cc) = decode.covariance
        (pp, ps), (_, ss) = start.covariance
        return (
            (step.base, step.per_row, step.per_context_token, step.prefill_per_token, step.startup),
            tuple(wide * value for value in (bb, rr, cc, 2 * br, 2 * bc, 2 * rc)),
            tuple(wide * value for value in (pp, ss, 2 * ps)),
            tuple(scale * part for noise in (decode, start) for part in (noise.relative_variance, noise.step_variance)),
        )

    def interval(self, work: Work, level: float = INTERVAL) -> tuple[float, float]:
        """Within which the time of known work lies with this probability, in seconds."""
        middle, variance = self.moments(*work.decode, *work.start)
        half = half_width(variance, level)
        return max(0.0, middle - half), middle + half

    def relative_interval(self, work: Work, level: float = INTERVAL) -> float:
        """Half of the width of that interval, relative to the expected time; 0 where that is 0."""
        middle, variance = self.moments(*work.decode, *work.start)
        return half_width(variance, level) / middle if middle > 0 else 0.0

    @cached_property
    def standard_deviation(self) -> Vector:
        """Of base, per row, per context token, prefill per token, start-up; in seconds."""
        return tuple(math.sqrt(part.covariance[i][i]) for part in (self.decode, self.start)
                     for i in range(len(part.covariance)))  # fmt: skip

    @cached_property
    def condition_number(self) -> float:
        """Of what the data say of the decode coefficients: 1 where they are told apart well, 1e6 where not at all."""
        return condition_number(self.decode.information)


def half_width(variance: float, level: float) -> float:
    """Half of the width of a normal distribution's interval."""
    return _NORMAL.inv_cdf((1 + level) / 2) * math.sqrt(variance)


def _prior_part(deviation: Vector) -> Part:
    nothing = diagonal([0.0] * len(deviation))
    return Part(diagonal([value**2 for value in deviation]), nothing, FIRST_NOISE**2, FIRST_STEP_NOISE**2)


def _part(posterior: Posterior, state: RegressionState) -> Part:
    return Part(posterior.covariance, information_of(state), state.relative_variance, state.step_variance)


def prior_moments(prior: StepTimePrior) -> tuple[Vector, Vector]:
    """Mean and standard deviation of the coefficients, in seconds; a coefficient that is no duration counts as 0."""
    told = (
        prior.base_seconds,
        prior.per_row_seconds,
        prior.per_context_token_seconds,
        prior.prefill_per_token_seconds,
        prior.startup_seconds,
    )
    mean = tuple(value if math.isfinite(value) and value > 0 else 0.0 for value in told)
    if not any(mean):
        return mean, (UNKNOWN.base, UNKNOWN.per_row, UNKNOWN.per_context_token,
                      UNKNOWN.prefill_per_token, UNKNOWN.startup)  # fmt: skip
    # Without a base, something of the size of a row's step stands in.
    base = mean[0] or mean[1] or max(mean)
    spread = tuple(PRIOR_SPREAD * max(value, share * base) for value, share in zip(mean, LEAST_SHARES, strict=True))
    return mean, spread
