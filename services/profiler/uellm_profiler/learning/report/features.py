"""What the baselines see of a prompt: counts, cues, and the words weighted by TF-IDF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.learning.report.forecasts import Floats

_CUES: Final = {
    "code": r"```|\b(?:code|function|python|javascript|sql|html|program|script|implement)\b",
    "long": r"\b(?:essay|story|article|blog|detailed|report|plan|guide|chapter|letter|speech)\b",
    "short": r"\b(?:brief|briefly|short|one sentence|one word|concise|summari[sz]e|tl;?dr|yes or no)\b",
    "list": r"\b(?:list|steps|ideas|examples|tips|ways|reasons|bullet)\b",
    "explain": r"\b(?:explain|why|how|describe|compare|discuss)\b",
    "fact": r"^\W*(?:who|when|where|which|what is|what's|is|are|does|do|can)\b",
    "rewrite": r"\b(?:rewrite|translate|correct|fix|convert|rephrase|classify|extract)\b",
    "poem": r"\b(?:poem|haiku|lyrics|song|limerick|joke)\b",
}
_PATTERNS: Final = tuple(re.compile(pattern, re.IGNORECASE) for pattern in _CUES.values())
_NUMBER = re.compile(
    r"\b(\d{1,4})\b(?=\s*(?:-\s*)?(?:words?|sentences?|paragraphs?|lines?|points?|steps?|ideas?|\w+s\b))"
)
SIMPLE = 11 + len(_CUES)


def simple(inputs: Sequence[PredictorInput]) -> Floats:
    """Counts, cues and generation parameters: (rows, `SIMPLE`)."""
    return np.array([_simple(one) for one in inputs], np.float64).reshape(len(inputs), SIMPLE)


def _simple(one: PredictorInput) -> list[float]:
    text = one.content
    words = text.split()
    number = _NUMBER.search(text)
    counts = [
        one.prompt_tokens,
        len(text),
        len(words),
        text.count("\n"),
        text.count("?"),
        sum(letter.isdigit() for letter in text),
        int(number[1]) if number else 0,
    ]
    generation = one.generation
    decoding = [generation.temperature, generation.top_p, generation.repetition_penalty]
    cues = [float(bool(pattern.search(text))) for pattern in _PATTERNS]
    return [*np.log1p(counts), *decoding, np.log(one.limit_tokens), *cues]


class WordWeights:
    """TF-IDF of words and pairs of words."""

    def __init__(self, most: int = 20_000) -> None:
        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            min_df=2,
            sublinear_tf=True,
            max_features=most,
            token_pattern=r"(?u)\b\w+\b|[?`]",  # noqa: S106  (words, no secret)
        )

    def fit(self, inputs: Sequence[PredictorInput]) -> Any:
        """Learn the words; returns the sparse matrix (rows, words)."""
        return self._vectorizer.fit_transform([one.content for one in inputs])

    def of(self, inputs: Sequence[PredictorInput]) -> Any:
        """Sparse matrix (rows, words)."""
        return self._vectorizer.transform([one.content for one in inputs])


class WordTopics:
    """The words in fewer dimensions."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._words = WordWeights()
        self._reduction: Any = None

    def fit(self, inputs: Sequence[PredictorInput]) -> Floats:
        """Learn them; returns (rows, dimensions)."""
        words = self._words.fit(inputs)
        dimensions = min(self._dimensions, min(words.shape) - 1)
        self._reduction = TruncatedSVD(dimensions, random_state=0)
        return np.asarray(self._reduction.fit_transform(words), np.float64)

    def of(self, inputs: Sequence[PredictorInput]) -> Floats:
        """(rows, dimensions)."""
        return np.asarray(self._reduction.transform(self._words.of(inputs)), np.float64)
