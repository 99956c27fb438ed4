"""What is asked: traces, arrivals that are drawn, predictions, windows; and what is made of the results."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_simulator.arrivals import Gamma, Generated, LogNormal, OnOff
from uellm_simulator.fates import Fate
from uellm_simulator.metrics import metrics_of
from uellm_simulator.runs import Paired, Source
from uellm_simulator.scenario import ENGINES, Scenario
from uellm_simulator.simulate import capacity_of, simulate
from uellm_simulator.timeline import events_of
from uellm_simulator.traces import TraceError, read_trace
from uellm_simulator.workload import Arrival, Predictions, Rules, SloClass, requests_of

from tests.support.simulated import STATIC, STEP, requests, world
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_REJECTED

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:46.9305900,396,109
2023-11-16 18:15:50.6805900,10,0
"""
MOONCAKE = '{"timestamp": 1000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'


def test_an_azure_trace(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    first, second = read_trace(path)  # the third has no answer
    assert (first.seconds, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.seconds == pytest.approx(0.25)


def test_a_mooncake_trace(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    path.write_text(MOONCAKE + '{"timestamp": 3500, "input_length": 1, "output_length": 2, "tenant": "b"}\n\n')
    first, second = read_trace(path)
    assert (first.seconds, first.prompt_tokens, first.output_tokens) == (0.0, 6955, 52)
    assert (second.seconds, second.tenant) == (2.5, "b")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "when,what\n1,2\n", "TIMESTAMP is missing"),
        ("a.csv", AZURE + "yesterday,1,2\n", "line 5"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("a.jsonl", MOONCAKE + "{}\n", "line 2: KeyError"),
        ("a.jsonl", "nonsense\n", "line 1"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=says):
        read_trace(tmp_path / name)


@pytest.mark.parametrize(
    ("gaps", "variation"), [(Gamma(), 1.0), (Gamma(3.0), 3.0), (Gamma(0.4), 0.4), (OnOff(0.25, 20), None)]
)
def test_gaps_have_the_mean_and_the_variation_that_they_say(gaps, variation):
    drawn = list(itertools.islice(gaps.draw(random.Random(3)), 60_000))
    assert min(drawn) >= 0
    assert fmean(drawn) == pytest.approx(1.0, rel=0.06)
    if variation is None:
        assert stdev(drawn) / fmean(drawn) > 1.5  # bursts
    else:
        assert stdev(drawn) / fmean(drawn) == pytest.approx(variation, rel=0.06)


def test_generated_requests_depend_on_the_seed_alone():
    generated = Generated(Gamma(), LogNormal(50, 0.5), LogNormal(90, 0.8, most=300), tenants=3)
    made = generated.take(500, 2.0, seed=1)
    assert made == generated.take(500, 2.0, seed=1) != generated.take(500, 2.0, seed=2)
    assert made[-1].seconds == pytest.approx(250, rel=0.15)
    assert {one.tenant for one in made} == {"t0", "t1", "t2"}
    assert max(one.output_tokens for one in made) <= 300


@given(tokens=st.integers(1, 900), spread=st.sampled_from([0.0, 0.5, 1.0]), noise=st.sampled_from([0.0, 0.7]))
def test_predictions_are_distributions_up_to_the_limit(tokens, spread, noise):
    told = Predictions(spread, noise).of(tokens, 900, random.Random(0))
    assert told.limit == 900
    if not spread and not noise:
        assert told.quantile(0.5) == pytest.approx(tokens, abs=1)


def test_predictions_say_how_far_off_they_are():
    """With a spread alone, half of the answers are below the median, and 90 % within the ninth decile."""
    draw, below, within = random.Random(1), 0, 0
    for _ in range(2_000):
        told = Predictions(0.6).of(200, 4_000, draw)
        below += told.quantile(0.5) >= 200
        within += told.quantile(0.9) >= 200
    assert below / 2_000 == pytest.approx(0.5, abs=0.04)
    assert within / 2_000 == pytest.approx(0.9, abs=0.03)


def test_another_rule_leaves_the_other_draws_as_they_are():
    lines = [Arrival(float(n), 10, 20) for n in range(50)]
    rules = Rules(classes=(SloClass("a", 0.5, 4.0), SloClass("b", 0.5, 8.0)), predictions=Predictions(0.5))
    one = requests_of(lines, rules, STEP, 1_000, "m", 1)
    tight = requests_of(lines, replace(rules, tightness=2.0), STEP, 1_000, "m", 1)
    assert {request.slo_class for request in one} == {"a", "b"}
    for before, after in zip(one, tight, strict=True):
        assert (before.slo_class, before.predicted) == (after.slo_class, after.predicted)
        assert after.completion_seconds == pytest.approx(before.completion_seconds / 2)
    # The median answer alone: a prompt of 10 tokens (1 s) and 19 steps of 1.5 s.
    assert {request.completion_seconds for request in one} == {4 * 29.5, 8 * 29.5}


def test_windows_of_a_trace():
    source = Source(trace=tuple(Arrival(float(n), n + 1, 1) for n in range(10)))
    assert [one.prompt_tokens for one in source.window(4, 0)] == [1, 2, 3, 4]
    first = source.window(4, 1)[0]
    assert (first.seconds, first.prompt_tokens) == (0.0, 5)
    assert source.window(4, 1) != source.window(4, 2)
    with pytest.raises(ValueError, match="10 requests, not 11"):
        source.window(11, 0)


def fate(at: float, *, deadline: float = 10.0, took: float = 5.0, refused: bool = False, tenant: str = "t") -> Fate:
    (request,) = requests([(at, 10, 20)], deadline)
    request = replace(request, arrival=replace(request.arrival, seconds=at, tenant=tenant))
    if refused:
        return Fate(request, QUERY_STATE_REJECTED, finish_seconds=at + took)
    return Fate(request, QUERY_STATE_COMPLETED, "deployments/0", "b", at + 1, at + 2, at + took, 20)


def test_metrics_by_hand():
    fates = [fate(0), fate(4, took=12), fate(6, took=2, refused=True), fate(8, tenant="u"), fate(10, deadline=0.0)]
    found = metrics_of(fates, 0.5)
    assert found.seconds == 10
    assert found.goodput == pytest.approx(0.2)
    assert (found.attainment.in_time, found.attainment.late, found.attainment.refused) == (0.5, 0.25, 0.25)
    assert found.miss_rate == pytest.approx(1 / 3)
    assert found.useful_tokens == pytest.approx(6.0)  # three answers of 20 tokens; the late one is not useful
    assert found.tokens == pytest.approx(8.0)
    assert found.refused_after == pytest.approx(0.2)
    # Of what they asked for, t got 2 of 4 answers in time, u all.
    assert found.jain == pytest.approx((0.5 + 1) ** 2 / (2 * (0.25 + 1)))


def test_paired_intervals():
    paired = Paired.of([3.0, 5.0, 4.0], [2.0, 3.0, 3.0])
    assert (paired.mean, paired.other, paired.ratio) == (4.0, pytest.approx(8 / 3), pytest.approx(1.5))
    half = 4.30 * stdev([1, 2, 1]) / math.sqrt(3)
    assert (paired.low, paired.high) == (pytest.approx(4 / 3 - half), pytest.approx(4 / 3 + half))
    assert Paired.of([1.0], [1.0]).low == -math.inf


@pytest.mark.parametrize("kind", ["static", "continuous"])
def test_the_capacity_is_where_queues_begin_to_grow(kind):
    """A third below it nobody waits long; a third above it the last wait for a good part of the run."""
    trace = Generated(Gamma(), LogNormal(300, 0.5), LogNormal(100, 0.6, most=400)).take(400, 1.0, seed=1)
    scenario = Scenario(engine=replace(ENGINES[kind], rows=8), policy="fifo")
    full = capacity_of(trace, scenario)
    waits = {}
    for load in (0.67, 1.33):
        result = simulate(trace, replace(scenario, load=load), capacity=full)
        assert result.rate == pytest.approx(load * full)
        waits[load] = fmean(one.wait for one in result.fates[-50:]) * full / 400
    assert waits[0.67] < 0.05
    assert waits[1.33] > 0.1


def test_a_timeline_has_every_request_on_a_place_of_its_own():
    fates = world(STATIC, requests([(0, 10, 2), (0, 20, 4), (1, 10, 3)])).run()
    slices = [event for event in events_of(fates) if event["ph"] == "X"]
    assert [(one["tid"], one["ts"], one["dur"]) for one in slices] == [(1, 0, 6e6), (2, 0, 9e6), (1, 9e6, 4e6)]
    json.dumps(slices)
