"""The baselines' point predictions: the logarithm of an answer's length from what simple models see of the prompt."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.learning.report.features import WordTopics, WordWeights, simple
from uellm_profiler.learning.report.forecasts import Floats

Inputs = Sequence[PredictorInput]


class Regressor(Protocol):
    """Predicts logarithms of lengths."""

    @property
    def parameters(self) -> int:
        """Numbers that were learned."""

    def fit(self, inputs: Inputs, targets: Floats) -> None:
        """Learn from the logarithms of observed lengths."""

    def predict(self, inputs: Inputs) -> Floats:
        """One logarithm a row."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to set a regressor up."""

    settings: str
    make: Callable[[], Regressor]


class Constant:
    """The median, whatever the prompt."""

    parameters = 1

    def fit(self, inputs: Inputs, targets: Floats) -> None:
        """See `Regressor`."""
        del inputs
        self._median = float(np.median(targets))

    def predict(self, inputs: Inputs) -> Floats:
        """See `Regressor`."""
        return np.full(len(inputs), self._median)


class PromptLength:
    """A power of the prompt's length."""

    parameters = 2

    def __init__(self) -> None:
        self._line = LinearRegression()

    def fit(self, inputs: Inputs, targets: Floats) -> None:
        """See `Regressor`."""
        self._line.fit(_log_tokens(inputs), targets)

    def predict(self, inputs: Inputs) -> Floats:
        """See `Regressor`."""
        return np.asarray(self._line.predict(_log_tokens(inputs)), np.float64)


def _log_tokens(inputs: Inputs) -> Floats:
    return np.log([[max(1, one.prompt_tokens)] for one in inputs])


class WordRidge:
    """TF-IDF and the simple features under ridge regression."""

    def __init__(self, penalty: float, simple_weight: float) -> None:
        self._words, self._scaler = WordWeights(), StandardScaler()
        self._ridge = Ridge(alpha=penalty, solver="lsqr", tol=1e-8, max_iter=10_000)
        self._simple_weight = simple_weight

    @property
    def parameters(self) -> int:
        """See `Regressor`."""
        return int(self._ridge.coef_.size) + 1

    def fit(self, inputs: Inputs, targets: Floats) -> None:
        """See `Regressor`."""
        words = self._words.fit(inputs)
        self._ridge.fit(self._join(words, self._scaler.fit_transform(simple(inputs))), targets)

    def predict(self, inputs: Inputs) -> Floats:
        """See `Regressor`."""
        features = self._join(self._words.of(inputs), self._scaler.transform(simple(inputs)))
        return np.asarray(self._ridge.predict(features), np.float64)

    def _join(self, words: Any, counts: Floats) -> Any:
        return hstack([words, csr_matrix(self._simple_weight * counts)], format="csr")


class WordBoosting:
    """TF-IDF, reduced or selected, and the simple features under gradient-boosted trees."""

    def __init__(self, topics: int, words: int, **settings: Any) -> None:
        """`topics` dimensions of all words beside the `words` that say most alone; settings are those of the trees."""
        self._topics = WordTopics(topics) if topics else None
        self._words, self._selection = WordWeights(), SelectKBest(f_regression, k=words)
        self._chosen = words
        self._trees = HistGradientBoostingRegressor(early_stopping=False, random_state=0, **settings)

    @property
    def parameters(self) -> int:
        """Split and leaf values."""
        trees = itertools.chain.from_iterable(self._trees._predictors)  # noqa: SLF001  (no other way to count them)
        return sum(len(tree.nodes) for tree in trees)

    def fit(self, inputs: Inputs, targets: Floats) -> None:
        """See `Regressor`."""
        parts = [simple(inputs)]
        if self._topics:
            parts.append(self._topics.fit(inputs))
        if self._chosen:
            words = self._words.fit(inputs)
            self._selection.set_params(k=min(self._chosen, words.shape[1]))
            parts.append(self._selection.fit_transform(words, targets).toarray())
        self._trees.fit(np.hstack(parts), targets)

    def predict(self, inputs: Inputs) -> Floats:
        """See `Regressor`."""
        parts = [simple(inputs)]
        if self._topics:
            parts.append(self._topics.of(inputs))
        if self._chosen:
            parts.append(self._selection.transform(self._words.of(inputs)).toarray())
        return np.asarray(self._trees.predict(np.hstack(parts)), np.float64)


def ridge_candidates() -> Iterator[Candidate]:
    """Penalties and weights of the simple features."""
    for penalty, weight in itertools.product((1.0, 3.0, 10.0, 30.0), (0.03, 0.1, 0.3)):
        yield Candidate(
            f"penalty {penalty:g}, simple features times {weight:g}",
            partial(WordRidge, penalty, weight),
        )


def boosting_candidates() -> Iterator[Candidate]:
    """Representations, sizes of trees, numbers of trees, and losses."""
    shapes = itertools.product(((0, 200), (50, 0), (50, 100), (0, 0)), ((4, 20), (8, 20), (16, 40)), (100, 250))
    for (topics, words), (leaves, fewest), trees in shapes:
        settings: dict[str, Any] = {
            "max_leaf_nodes": leaves,
            "min_samples_leaf": fewest,
            "max_iter": trees,
            "learning_rate": 0.04,
            "l2_regularization": 3.0,
            "max_features": 0.5,
        }
        yield Candidate(
            f"{topics} topics, {words} words, {trees} trees of {leaves} leaves of {fewest} rows",
            partial(WordBoosting, topics, words, **settings),
        )
