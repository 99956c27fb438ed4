"""What a predictor must beat, trained on the same examples: each tuned by cross-validation over prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau
from sklearn.model_selection import GroupKFold

from uellm.cost.lengths import LengthDistribution
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.domain.prior import StatisticalPrior
from uellm_profiler.learning.examples import Example, to_input
from uellm_profiler.learning.report.entrants import Entrant
from uellm_profiler.learning.report.forecasts import Floats, Outcomes
from uellm_profiler.learning.report.progress import no_progress
from uellm_profiler.learning.report.regressors import (
    Candidate,
    Constant,
    Inputs,
    PromptLength,
    Regressor,
    boosting_candidates,
    ridge_candidates,
)
from uellm_profiler.learning.report.residuals import Residuals

FOLDS = 5


@dataclass(frozen=True, slots=True)
class Baseline:
    """A trained baseline."""

    name: str
    description: str
    regressor: Regressor
    residuals: Residuals
    cross_validated_tau: float
    """Mean over the folds of the training examples; 0 where predictions are all alike."""

    @property
    def parameters(self) -> int:
        """Numbers that were learned; the residuals' distribution not counted."""
        return self.regressor.parameters

    def predict(self, prompts: Sequence[PredictorInput]) -> list[LengthDistribution]:
        """One distribution a prompt, each ending at its limit."""
        points = self.regressor.predict(prompts)
        return [
            self.residuals.distribution(float(point), prompt.limit_tokens)
            for point, prompt in zip(points, prompts, strict=True)
        ]

    def enter(self, examples: Sequence[Example]) -> Entrant:
        """Its entry to the card."""
        predicted = self.predict([to_input(example) for example in examples])
        return Entrant(self.name, self.description, predicted, self.parameters, baseline=True)


_CONTENDERS: dict[str, tuple[str, Callable[[], Iterable[Candidate]]]] = {
    "constant": ("median of the training answers", lambda: [Candidate("", Constant)]),
    "prompt length": ("power of the prompt's length", lambda: [Candidate("", PromptLength)]),
    "TF-IDF + ridge": ("words and simple features, ridge regression", ridge_candidates),
    "TF-IDF + boosting": ("words and simple features, gradient-boosted trees", boosting_candidates),
}


def fit_baselines(train: Sequence[Example], progress: Callable[[str, int, int], None] = no_progress) -> list[Baseline]:
    """Tune and train them all; `progress(name, done, total)` is called after each candidate.

    Cut answers count as long as they were seen, which is what predictions are compared with, but their residuals count
    as bounds. Raises ValueError for fewer prompts than folds.
    """
    baselines = []
    for name, (description, candidates) in _CONTENDERS.items():
        every = list(candidates())
        done = 0

        def count(name: str = name, total: int = len(every)) -> None:
            nonlocal done
            done += 1
            progress(name, done, total)

        baselines.append(_fit(name, description, every, train, count))
    return baselines


def _fit(
    name: str, description: str, candidates: Sequence[Candidate], train: Sequence[Example], count: Callable[[], None]
) -> Baseline:
    inputs, outcomes = [to_input(example) for example in train], Outcomes.of(train)
    targets = np.log(outcomes.tokens)
    scored = []
    for candidate in candidates:
        scored.append(_cross_validate(candidate, inputs, targets, outcomes))
        count()
    best = int(np.argmax([tau for tau, _ in scored]))  # the first of equals
    chosen, (tau, unseen) = candidates[best], scored[best]
    regressor = chosen.make()
    regressor.fit(inputs, targets)
    described = f"{description}: {chosen.settings}" if chosen.settings else description
    return Baseline(name, described, regressor, Residuals.of(targets - unseen, outcomes.cut), tau)


def _cross_validate(candidate: Candidate, inputs: Inputs, targets: Floats, outcomes: Outcomes) -> tuple[float, Floats]:
    """Mean tau over the folds, and what was predicted for each row by a model that had not seen its prompt."""
    unseen, taus = np.zeros_like(targets), []
    for learned, left in GroupKFold(FOLDS, shuffle=True, random_state=0).split(targets, groups=outcomes.clusters):
        regressor = candidate.make()
        regressor.fit([inputs[i] for i in learned], targets[learned])
        unseen[left] = regressor.predict([inputs[i] for i in left])
        taus.append(np.nan_to_num(kendalltau(unseen[left], targets[left]).statistic))
    return float(np.mean(taus)), unseen


def prior_entrant(examples: Sequence[Example]) -> Entrant:
    """The statistical prior's entry to the card."""
    prior = StatisticalPrior()
    predicted = asyncio.run(prior.predict([to_input(example) for example in examples])).lengths
    return Entrant("prior", prior.description, predicted, 2, baseline=True)
