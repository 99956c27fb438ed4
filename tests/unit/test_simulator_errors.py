"""Simulated predictions are as far off as the predictor whose errors they are drawn from."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from scipy.stats import kendalltau
from uellm_simulator.errors import COLUMNS, SHIPPED, ErrorTable, ErrorTableError, Lengths
from uellm_simulator.scenario import Scenario
from uellm_simulator.workload import MEASURED, Arrival, Predictions, Rules, requests_of

from tests.support.simulated import STEP
from uellm.cost.lengths import LengthDistribution

CARD = Path(__file__).parents[2] / "docs" / "predictor" / "card.md"
LIMIT = 512
"""Of the answers on the card."""


def on_the_card(table: str, column: int) -> float:
    """The shipped predictor's figure for greedy answers, in a table of the card."""
    _, _, rest = CARD.read_text("utf-8").partition(f"**greedy, repetition penalty 1.15: {table}")
    cells = next(line for line in rest.splitlines() if line.startswith("| lora/1")).split("|")
    return float(re.match(r"\s*([-\d.]+)", cells[column + 1])[1])


def predicted(seed: int) -> list[tuple[int, LengthDistribution]]:
    """The test answers' own lengths, with predictions that end where those of the card do."""
    lengths = [round(math.exp(row[0])) for row in json.loads(SHIPPED.read_text())["rows"]]
    random.Random(seed).shuffle(lengths)
    among = Lengths.of(map(math.log, lengths))
    return [(one, MEASURED.of(one, LIMIT, random.Random(f"{seed}/{n}"), among)) for n, one in enumerate(lengths)]


@pytest.fixture(scope="module")
def answers() -> list[tuple[int, LengthDistribution]]:
    return [one for seed in range(3) for one in predicted(seed)]


def test_errors_are_those_of_the_card(answers):
    points = [(min(length, LIMIT), max(1, round(told.quantile(0.5)))) for length, told in answers]
    log_ratio = fmean(abs(math.log(point / length)) for length, point in points)
    assert log_ratio == pytest.approx(on_the_card("error in tokens", 3), rel=0.05)
    assert fmean(abs(point - length) for length, point in points) == pytest.approx(
        on_the_card("error in tokens", 1), rel=0.07
    )
    assert kendalltau(*zip(*points, strict=True))[0] == pytest.approx(on_the_card("order", 1), abs=0.03)


def test_levels_are_those_of_the_card(answers):
    uncut = [(told.ended_by(length) / told.below[-1]) for length, told in answers if length < LIMIT]
    assert fmean(level <= 0.9 for level in uncut) == pytest.approx(on_the_card("coverage of p90", 3), abs=0.035)
    within = [min(length, LIMIT) <= told.quantile(0.9) for length, told in answers]
    assert fmean(within) == pytest.approx(on_the_card("coverage of p90", 1), abs=0.015)


def test_other_traffic_is_predicted_as_well_as_its_lengths_differ():
    """Of lengths that differ half as much, errors are half as large, and the order is as good."""
    rows = json.loads(SHIPPED.read_text())["rows"]
    lengths = [max(1, round(1000 * math.exp(row[0] / 2))) for row in rows]
    points = medians(lengths)
    errors = fmean(abs(math.log(point / length)) for length, point in zip(lengths, points, strict=True))
    assert errors == pytest.approx(fmean(abs(row[1]) for row in rows) / 2, rel=0.1)
    assert kendalltau(lengths, points)[0] == pytest.approx(own_tau(rows), abs=0.03)


def test_traffic_of_another_shape_is_predicted_in_as_good_an_order():
    """Short answers, long ones, and few between."""
    draw = random.Random(4)
    lengths = [round(draw.lognormvariate(*draw.choice(((3.5, 0.4), (6.0, 0.5), (6.0, 0.5))))) for _ in range(900)]
    points = medians(lengths)
    assert kendalltau(lengths, points)[0] == pytest.approx(own_tau(json.loads(SHIPPED.read_text())["rows"]), abs=0.04)


def medians(lengths: list[int]) -> list[float]:
    among = Lengths.of(map(math.log, lengths))
    told = [MEASURED.of(one, 100_000, random.Random(n), among) for n, one in enumerate(lengths)]
    return [max(1.0, one.quantile(0.5)) for one in told]


def own_tau(rows: list[list[float]]) -> float:
    return float(kendalltau([row[0] for row in rows], [row[0] + row[1] for row in rows])[0])


def test_answers_that_are_all_alike_are_known():
    lines = [Arrival(float(n), 10, 20) for n in range(5)]
    for request in requests_of(lines, Rules(), STEP, 1_000, "m", 1):
        assert request.predicted.quantile(0.5) == pytest.approx(20, abs=1)


def test_unknown_noise_is_added():
    told = [
        replace(MEASURED, noise=noise).of(200, 100_000, random.Random(1), Lengths.of((4.6, 5.3, 6.0))).quantile(0.5)
        for noise in (0.0, 0.5)
    ]
    assert told[0] != pytest.approx(told[1], rel=0.01)
    assert Scenario().with_changes([("spread", "0.5")]).rules.predictions == Predictions(0.5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "no table"),
        ("{}", "no table"),
        ('{"columns": ["a", "b", "c"], "rows": [[1, 2, 3]]}', "columns are to be"),
        (json.dumps({"columns": COLUMNS, "rows": []}), "no table"),
        (json.dumps({"columns": COLUMNS, "rows": [[1, 2, 3], [2, 1, 0]]}), "above 0"),
        (json.dumps({"columns": COLUMNS, "rows": [[1, 2, 3], [2, 1]]}), "no table"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, text: str, says: str):
    path = tmp_path / "errors.json"
    path.write_text(text)
    with pytest.raises(ErrorTableError, match=says):
        ErrorTable.read(path)
