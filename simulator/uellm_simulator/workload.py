"""What is asked of the engines: requests with their true lengths, which no policy sees."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.steps import StepTime
from uellm_simulator.errors import ErrorTable, Lengths, shipped


@dataclass(frozen=True, slots=True)
class Arrival:
    """A line of a trace. Tokens are at least 1."""

    seconds: float
    """Since the first."""
    prompt_tokens: int
    output_tokens: int
    tenant: str = "trace"


@dataclass(frozen=True, slots=True)
class SloClass:
    """How urgent a share of the requests is. Times are multiples of what the median answer takes alone."""

    name: str
    share: float
    completion: float = 0.0
    """0: no objective."""
    first_token: float = 0.0
    confidence: float = 0.9


CLASSES = (
    SloClass("interactive", 0.3, completion=4.0),
    SloClass("standard", 0.4, completion=10.0),
    SloClass("relaxed", 0.2, completion=30.0),
    SloClass("best effort", 0.1),
)
"""Unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What is said of an answer's length beforehand.

    The logarithm of the predicted median is off by N(0, `spread`), or as a predictor's was (`table`), and the
    prediction says so; and by N(0, `noise`) besides, of which it does not know. None of them: an oracle.
    """

    spread: float = 0.0
    noise: float = 0.0
    table: ErrorTable | None = None
    """Instead of the spread."""
    stated: float = 0.0
    """Of an oracle: the spread that it states nevertheless."""

    def of(
        self, output_tokens: int, limit: int, draw: random.Random, among: Lengths | None = None
    ) -> LengthDistribution:
        """Prediction for an answer, `among` those of its traffic; None: of those of the table."""
        off, unknown = draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0)
        length, shift = math.log(output_tokens), self.noise * unknown
        if self.table is not None:
            among = among or self.table.lengths
            if among.spread > 0:
                return LengthDistribution.from_cdf(self.table.cdf(length, among, shift, draw), limit)
        elif self.spread or self.stated:
            mu = length + self.spread * off + shift
            return LengthDistribution.from_cdf(log_normal_cdf(mu, self.spread or self.stated), limit)
        return _certain(min(limit, max(1, round(math.exp(length + shift)))), limit)


MEASURED = Predictions(table=shipped())
"""As far off as the shipped predictor on prompts that it never saw (docs/predictor/card.md)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One query."""

    name: str
    """Resource name."""
    arrival: Arrival
    slo_class: str
    completion_seconds: float
    """0: no objective."""
    first_token_seconds: float
    confidence: float
    predicted: LengthDistribution

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.arrival.tenant


@dataclass(frozen=True, slots=True)
class Rules:
    """How a trace becomes requests."""

    classes: tuple[SloClass, ...] = CLASSES
    predictions: Predictions = MEASURED
    tightness: float = 1.0
    """Objectives are divided by it."""


def requests_of(
    arrivals: Sequence[Arrival], rules: Rules, step: StepTime, context_tokens: int, model: str, seed: int
) -> list[Request]:
    """Give each line a class and a prediction, drawn by `seed`; what does not fit the context is cut to it.

    The draws of a line depend on the seed and on its number only: another rule or load leaves the others as they are.
    An error that is drawn from a table depends on how long the answer is among the others.
    """
    typical = median(one.output_tokens for one in arrivals)
    prompt = median(one.prompt_tokens for one in arrivals)
    among = Lengths.of(math.log(max(1, one.output_tokens)) for one in arrivals)
    alone = step.alone_seconds(min(round(prompt), context_tokens - 1), max(1.0, typical)) / rules.tightness
    made = []
    for number, one in enumerate(arrivals):
        draw = random.Random(f"{seed}/{number}")
        chosen = _class_of(rules.classes, draw.random())
        prompt_tokens = min(one.prompt_tokens, context_tokens // 2)
        limit = context_tokens - prompt_tokens
        output_tokens = max(1, min(one.output_tokens, limit))
        made.append(
            Request(
                name=f"tenants/{one.tenant}/models/{model}/queries/{number}",
                arrival=replace(one, prompt_tokens=prompt_tokens, output_tokens=output_tokens),
                slo_class=chosen.name,
                completion_seconds=chosen.completion * alone,
                first_token_seconds=chosen.first_token * alone,
                confidence=chosen.confidence,
                predicted=rules.predictions.of(output_tokens, limit, draw, among),
            )
        )
    return made


def scaled(arrivals: Sequence[Arrival], factor: float) -> list[Arrival]:
    """The same requests, `factor` times as fast."""
    return [replace(one, seconds=one.seconds / factor) for one in arrivals]


def rate_of(arrivals: Sequence[Arrival]) -> float:
    """Requests a second."""
    span = arrivals[-1].seconds - arrivals[0].seconds
    return (len(arrivals) - 1) / span if span > 0 else math.inf


def _class_of(classes: Sequence[SloClass], where: float) -> SloClass:
    total = sum(one.share for one in classes)
    for one in classes:
        where -= one.share / total
        if where < 0:
            return one
    return classes[-1]


def _certain(tokens: int, limit: int) -> LengthDistribution:
    """All at one length."""
    if tokens >= limit:
        return LengthDistribution((limit,), (1.0,), 1.0)
    edges = sorted({max(1, tokens - 1), tokens, limit})
    return LengthDistribution(tuple(edges), tuple(float(edge == tokens) for edge in edges), 0.0)
