"""The paper's workload, drawn anew: a hundred queries, their answers in each run, and what is predicted of them.

The logs give no length of a single answer of the end-to-end runs, only of each batch's longest. What is drawn has their
statistics; how each constant was found stands with it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from uellm_simulator.scenario import MODEL
from uellm_simulator.workload import Arrival, Predictions, Request

from uellm.cost.lengths import LengthDistribution

QUERIES = 100
SLO_SECONDS = ((220, 250), (180, 220), (150, 180), (100, 120), (90, 100))
"""Whole seconds, uniform, by position in the file: each for a fifth of the queries."""
PROMPTS = (16, 41)
"""Tokens: the batches' longest prompts lie between them."""

ANSWER_MEDIAN, ANSWER_SPREAD = 162.0, 0.555
"""Log-normal over all answers: most likely for the longest of each of the 170 batches of ten served first come, first
served (UELLM-deploy, baseline) that did not run away. Mean with those that did: 208; published over nine runs: 212."""
NOISE = 0.42
"""Of it, between two runs of the same prompt: published coefficient of variation 0.44."""
RUNAWAY = 0.0105
"""Share of answers that end at the cap only: 20 of those batches did."""
LONGEST_ANSWER = 4_096
"""Of one that runs away."""

PREDICTED_MEDIAN, PREDICTED_SPREAD = 55.0, 1.1
"""The authors predict with the number of characters of another model's answer. S3 packs 1,024 of them into a batch, and
needs 12 or 13 batches; of a log-normal with these two it needs 12.2 on average. The longest of a hundred is 820 in the
median; published: 709."""
CORRELATION = 0.6
"""Between predicted and true length, in logarithms: S3's first batches say 0.45, its last ones 0.87."""
CONTEXT_TOKENS = 2_048


@dataclass(frozen=True, slots=True)
class QuerySpec:
    """A query as the authors' scripts know it, and what its answers are like."""

    slo_seconds: float
    prompt_tokens: int
    predicted_tokens: int
    log_median: float
    """Of its answers, natural logarithm of tokens."""


def queries(seed: int) -> list[QuerySpec]:
    """A hundred queries in the order of the file."""
    draw = random.Random(f"queries/{seed}")
    between = math.sqrt(ANSWER_SPREAD**2 - NOISE**2)
    # Of the two logarithms; the answers' noise is independent of the prediction.
    shared = CORRELATION * ANSWER_SPREAD / between
    made = []
    for number in range(QUERIES):
        low, high = SLO_SECONDS[number * len(SLO_SECONDS) // QUERIES]
        common, own = draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0)
        log_median = math.log(ANSWER_MEDIAN) + between * (shared * common + math.sqrt(1 - shared**2) * own)
        predicted = max(1, round(PREDICTED_MEDIAN * math.exp(PREDICTED_SPREAD * common)))
        made.append(QuerySpec(draw.randint(low, high), draw.randint(*PROMPTS), predicted, log_median))
    return made


def answers(asked: Sequence[QuerySpec], seed: str) -> list[int]:
    """Tokens of each query's answer in one run, were it never cut."""
    draw = random.Random(f"answers/{seed}")
    made = []
    for query in asked:
        runs_away, noise = draw.random() < RUNAWAY, draw.gauss(0.0, NOISE)
        made.append(LONGEST_ANSWER if runs_away else max(1, round(math.exp(query.log_median + noise))))
    return made


def requests(
    asked: Sequence[QuerySpec],
    lengths: Sequence[int],
    predicted: Sequence[LengthDistribution],
    *,
    tightness: float = 1.0,
) -> list[Request]:
    """All at once, in the order of the file; objectives are divided by `tightness`."""
    return [
        Request(
            name=f"tenants/paper/models/{MODEL}/queries/{number:03d}",
            arrival=Arrival(0.0, query.prompt_tokens, tokens, "paper"),
            slo_class="paper",
            completion_seconds=query.slo_seconds / tightness,
            first_token_seconds=0.0,
            confidence=0.9,
            predicted=distribution,
        )
        for number, (query, tokens, distribution) in enumerate(zip(asked, lengths, predicted, strict=True))
    ]


def as_published(asked: Sequence[QuerySpec]) -> list[LengthDistribution]:
    """The scripts' own predictions: one number each."""
    oracle = Predictions()
    return [oracle.of(query.predicted_tokens, CONTEXT_TOKENS - query.prompt_tokens, _UNUSED) for query in asked]


_UNUSED = random.Random(0)
