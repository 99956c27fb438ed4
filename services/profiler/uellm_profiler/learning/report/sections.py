"""The parts of a card, each from examples and the entrants' predictions for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from uellm_profiler.learning.examples import Example
from uellm_profiler.learning.report.entrants import Entrant
from uellm_profiler.learning.report.floor import ANOTHER, find_samples, measure_floor
from uellm_profiler.learning.report.forecasts import Floats, Forecasts, Ints, Outcomes
from uellm_profiler.learning.report.metrics import METRICS, POINT_METRICS, SHARE, Scorer
from uellm_profiler.learning.report.resampling import Estimate, resample, rounded
from uellm_profiler.learning.report.serving import Load, simulate
from uellm_profiler.learning.report.settings import Card, Collection, Settings, decoding_name, decodings

FEWEST_ROWS = 30
"""Smaller groups are left out: their intervals would say that nothing is known."""
GROUP_METRICS = ("tau", "mae", "log_ratio", "coverage_p90_given_uncut")
BINS = 10
NOTHING_KNOWN, ALL_KNOWN = "in order of arrival", "lengths known"


def _measured(
    rows: Ints, examples: Sequence[Example], entrants: Sequence[Entrant], settings: Settings
) -> tuple[Scorer, dict[str, Forecasts], dict[str, dict[str, Floats]]]:
    outcomes = Outcomes.of([examples[i] for i in rows])
    scorer = Scorer(outcomes, resample(outcomes.clusters, settings.resamples, settings.seed))
    forecasts = {one.name: Forecasts.of([one.distributions[i] for i in rows], outcomes) for one in entrants}
    return scorer, forecasts, {name: scorer.measure(forecast) for name, forecast in forecasts.items()}


def section(
    name: str, rows: Ints, examples: Sequence[Example], entrants: Sequence[Entrant], settings: Settings
) -> Card:
    """All metrics of the rows of one decoding."""
    scorer, forecasts, measured = _measured(rows, examples, entrants, settings)
    outcomes = scorer.outcomes
    return {
        "name": name,
        "rows": len(rows),
        "prompts": int(outcomes.clusters.max()) + 1,
        "cut_share": rounded(outcomes.cut.mean(), SHARE),
        "majority_accuracy": Estimate.of(scorer.majority()).rounded(SHARE),
        "metrics": {one: _metrics(values) for one, values in measured.items()},
        "tau_differences": _tau_differences(entrants, measured),
        "pit": {one: _pit_histogram(forecast) for one, forecast in forecasts.items()},
    }


def _metrics(measured: Mapping[str, Floats]) -> Card:
    return {name: Estimate.of(values).rounded(METRICS[name].digits) for name, values in measured.items()}


def _tau_differences(entrants: Sequence[Entrant], measured: Mapping[str, Mapping[str, Floats]]) -> Card:
    """Of each predictor to each baseline."""
    baselines = [one.name for one in entrants if one.baseline]
    return {
        one.name: {
            baseline: Estimate.of(measured[one.name]["tau"] - measured[baseline]["tau"]).rounded(SHARE)
            for baseline in baselines
        }
        for one in entrants
        if not one.baseline
    }


def _pit_histogram(forecasts: Forecasts) -> list[float | None]:
    """Share of the outcomes in each tenth of their predicted distribution, each spread over its own step."""
    low, step = forecasts.pit_low[:, None], (forecasts.pit_high - forecasts.pit_low)[:, None]
    edges = np.linspace(0, 1, BINS + 1)
    below = np.where(step > 0, (edges - low) / np.where(step > 0, step, 1), edges >= low)
    shares = np.diff(np.clip(below, 0, 1).mean(0))
    return [rounded(share, SHARE) for share in shares]


def groups(examples: Sequence[Example], entrants: Sequence[Entrant], settings: Settings) -> Card:
    """By source and by family, in the first section."""
    rows = decodings(examples)[0][1]
    kinds: dict[str, Callable[[Example], str]] = {
        "source": lambda example: example.prompt.source,
        "family": lambda example: example.prompt.family,
    }
    found: Card = {}
    for kind, name_of in kinds.items():
        names = sorted({name_of(examples[i]) for i in rows})
        mine = {name: np.array([i for i in rows if name_of(examples[i]) == name], np.int64) for name in names}
        found[kind] = [
            _group(name, mine[name], examples, entrants, settings) for name in names if len(mine[name]) >= FEWEST_ROWS
        ]
        found[f"{kind}_left_out"] = [name for name in names if len(mine[name]) < FEWEST_ROWS]
    return found


def _group(name: str, rows: Ints, examples: Sequence[Example], entrants: Sequence[Entrant], settings: Settings) -> Card:
    scorer, _, measured = _measured(rows, examples, entrants, settings)
    shown = {one: _metrics({key: values[key] for key in GROUP_METRICS}) for one, values in measured.items()}
    return {
        "name": name,
        "rows": len(rows),
        "cut_share": rounded(scorer.outcomes.cut.mean(), SHARE),
        "median_tokens": rounded(float(np.median(scorer.outcomes.tokens)), 1),
        "metrics": shown,
    }


def noise_floor(examples: Sequence[Example], entrants: Sequence[Entrant], settings: Settings) -> Card | None:
    """The noise floor, and the entrants on the same prompts and answers; None where no prompt has two samples."""
    labels = [example.label for example in examples]
    samples = find_samples(labels)
    if samples is None:
        return None
    outcomes = Outcomes.of(examples)
    points = {one.name: Forecasts.of(one.distributions, outcomes).p50 for one in entrants}
    options = {"resamples": settings.resamples, "seed": settings.seed}
    measured = measure_floor(labels, samples, points, **options)
    floor = measured[ANOTHER]["tau"]
    card = {
        "decoding": decoding_name(samples.decoding),
        "prompts": len(samples.rows),
        "samples": samples.rows.shape[1],
        "cut_share": rounded(outcomes.cut[samples.rows].mean(), SHARE),
        "metrics": {name: _point_metrics(values) for name, values in measured.items()},
        "tau_ratios": {
            name: Estimate.of(_ratio(values["tau"], floor)).rounded(SHARE)
            for name, values in measured.items()
            if name != ANOTHER
        },
    }
    every = find_samples(settings.floor_labels) if settings.floor_labels else None
    if every is not None:
        wider = measure_floor(settings.floor_labels, every, {}, **options)
        card["all_prompts"] = {
            "prompts": len(every.rows),
            "metrics": {name: _point_metrics(values) for name, values in wider.items()},
        }
    return card


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below != 0)


def _point_metrics(measured: Mapping[str, Floats]) -> Card:
    return _metrics({name: measured[name] for name in POINT_METRICS})


def collection(apart: Collection, settings: Settings) -> Card:
    """The chosen metrics on the prompts of another collection."""
    rows = np.arange(len(apart.examples))
    return _group(apart.name, rows, apart.examples, apart.entrants, settings)


def serving(examples: Sequence[Example], entrants: Sequence[Entrant], load: Load) -> Card:
    """In the first section: nothing known, each entrant, and the lengths known."""
    rows = decodings(examples)[0][1]
    outcomes = Outcomes.of([examples[i] for i in rows])
    forecasts = {one.name: Forecasts.of([one.distributions[i] for i in rows], outcomes).p50 for one in entrants}
    orders = {
        NOTHING_KNOWN: np.zeros(len(rows)),
        **forecasts,
        ALL_KNOWN: outcomes.tokens.astype(np.float64),
    }
    return {
        "rows": load.rows,
        "deadline_p90_answers": load.deadline,
        "runs": load.runs,
        "loads": [_served(outcomes.tokens, orders, utilisation, load) for utilisation in load.utilisations],
    }


def _served(lengths: Ints, orders: Mapping[str, Floats], utilisation: float, load: Load) -> Card:
    served = {name: simulate(lengths, order, utilisation, load) for name, order in orders.items()}
    return {
        "utilisation": utilisation,
        "on_time": {name: rounded(one.on_time.mean(), SHARE) for name, one in served.items()},
        "wait_answers": {name: rounded(one.wait.mean(), SHARE) for name, one in served.items()},
    }
