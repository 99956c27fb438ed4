"""The pure parts of the profiler."""

from __future__ import annotations

import math
import random

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from uellm_profiler.domain import limits, refusals
from uellm_profiler.domain.predictor import PredictorInput
from uellm_profiler.domain.prior import MU, SIGMA, StatisticalPrior
from uellm_profiler.domain.profile import kv_cache_bytes, resource_profile

from tests.support.costs import TRUTH, random_batch
from uellm.cost.fit import CostFit
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.cost.model import CostModel
from uellm.cost.service import service_time
from uellm.cost.steps import StepTime, batch_work
from uellm.messaging.clock import timestamp
from uellm.v1.query_pb2 import (
    ON_MISS_CANCEL,
    ON_MISS_FINISH_LATE,
    GenerationParameters,
    Query,
    Slo,
)
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_CREATING,
    Backlog,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
)

STEPS = StepTime(base=0.08, per_row=0.006, per_context_token=1e-5, prefill_per_token=0.002, startup=0.03)


def deployment(**changes: object) -> DeploymentRecord:
    record = DeploymentRecord(
        name="deployments/a",
        model="m",
        facts=ModelFacts(context_limit_tokens=2_048, kv_bytes_per_token=46_080, vocabulary_size=1_000),
        limits=EngineLimits(context_tokens=1_024, max_output_tokens=512),
        step_time_prior=STEPS.to_prior("measured"),
        traffic_share=1,
    )
    record.MergeFrom(DeploymentRecord(**changes))  # type: ignore[arg-type]
    return record


def prior_input(limit: int) -> PredictorInput:
    return PredictorInput("m", "text", 10, GenerationParameters(), limit)


async def test_prior_is_the_stated_log_normal_cut_at_the_limit() -> None:
    cdf = log_normal_cdf(MU, SIGMA)
    predicted = await StatisticalPrior().predict([prior_input(100), prior_input(100_000)])
    assert predicted.version == "prior/1"
    short, long = predicted.lengths
    assert (short.limit, long.limit) == (100, 100_000)
    assert short.limit_probability == pytest.approx(1 - cdf(100))
    assert len(long.edges) >= 16
    assert long.quantile(0.5) == pytest.approx(278, rel=0.05)
    assert long.quantile(0.9) == pytest.approx(1_144, rel=0.05)
    assert math.exp(MU) == pytest.approx(278, abs=1)


@given(
    prompt=st.integers(1, 2_000),
    asked=st.one_of(st.none(), st.integers(1, 2**31 - 1)),
    default=st.one_of(st.none(), st.integers(1, 4_000)),
    engine=st.integers(0, 4_000),
)
def test_output_limit_is_the_least_of_all(prompt: int, asked: int | None, default: int | None, engine: int) -> None:
    record = deployment(default_generation=GenerationParameters(max_output_tokens=default))
    record.limits.max_output_tokens = engine
    limit = limits.output_limit(GenerationParameters(max_output_tokens=asked), record, prompt)
    wish = asked or default
    assert limit == min(value for value in (wish, engine or None, 1_024 - prompt) if value is not None)


def test_context_falls_back_to_the_models() -> None:
    record = deployment()
    record.limits.context_tokens = 0
    assert limits.context_tokens(record) == 2_048


def test_defaults_are_filled_in_and_the_callers_values_kept() -> None:
    record = deployment(default_generation=GenerationParameters(temperature=0.7, repetition_penalty=1.15, stop=["END"]))
    query = Query(name="x", prompt="p", generation=GenerationParameters(temperature=0, top_p=0.5), slo=Slo())
    filled = limits.fill_defaults(query, record, 99, lambda: 7)
    expected = GenerationParameters(
        max_output_tokens=99, temperature=0, top_p=0.5, repetition_penalty=1.15, seed=7, stop=["END"]
    )
    assert filled.generation == expected
    assert (filled.name, filled.prompt) == ("", "p")
    assert (filled.slo.confidence, filled.slo.on_miss) == (0.9, ON_MISS_FINISH_LATE)
    assert query.generation == GenerationParameters(temperature=0, top_p=0.5), "the request must not change"


def test_nothing_is_filled_over_what_the_caller_set() -> None:
    asked = GenerationParameters(
        max_output_tokens=3, temperature=1, top_p=0.9, repetition_penalty=2, seed=-5, stop=["a"]
    )
    slo = Slo(completion=Duration(seconds=1), confidence=0.5, on_miss=ON_MISS_CANCEL)
    record = deployment(default_generation=GenerationParameters(temperature=0.7, seed=1, stop=["END"]))
    filled = limits.fill_defaults(Query(prompt="p", generation=asked, slo=slo), record, 3, lambda: 7)
    assert filled.generation == asked
    assert filled.slo == slo


def test_without_any_default_decoding_is_greedy() -> None:
    filled = limits.fill_defaults(Query(prompt="p"), deployment(), 10, lambda: 7)
    assert filled.generation == GenerationParameters(
        max_output_tokens=10, temperature=0, top_p=1, repetition_penalty=1, seed=7
    )
    assert not filled.HasField("slo")


def test_the_deployment_with_most_traffic_is_chosen() -> None:
    records = [deployment(name=f"deployments/{name}", traffic_share=share) for name, share in
               (("b", 0.4), ("c", 0.5), ("a", 0.5))]  # fmt: skip
    chosen = limits.choose_deployment(records)
    assert chosen is not None
    assert chosen.name == "deployments/a"
    assert limits.choose_deployment([]) is None


def test_the_cache_of_a_query_is_that_of_the_engine() -> None:
    one = deployment()
    assert kv_cache_bytes(one, 250) == 46_080 * 250
    one.facts.kv_cache_layers.add(layers=5, bytes_per_token=1_024, window_tokens=101)
    one.facts.kv_cache_layers.add(layers=1, bytes_per_token=1_024)
    assert kv_cache_bytes(one, 250) == 5 * 1_024 * 100 + 1_024 * 250
    one.limits.kv_page_tokens = 16  # 250 tokens lie in 16 pages, a window of 101 touches 8 at most
    assert kv_cache_bytes(one, 250) == 16 * 1_024 * (5 * 8 + 16)


def test_profile_figures() -> None:
    length = LengthDistribution((100, 200), (0.8, 0.2), 0.1)
    record = deployment(limits=EngineLimits(max_batch_rows=8))
    cost = CostModel.from_prior(record.step_time_prior)
    profile = resource_profile(record, 50, length, cost, priority=3, predictor_version="prior/1")
    assert profile.prompt_tokens == 50
    assert profile.output_length.p50_tokens == pytest.approx(62.5)
    assert profile.output_length.p90_tokens == pytest.approx(200)
    assert profile.kv_cache_bytes_p90 == 46_080 * 250
    assert profile.kv_cache_bytes_limit == 46_080 * 250
    p50 = 0.03 + 50 * 0.002 + 61.5 * (0.086 + 1e-5 * 50) + 1e-5 * 61.5 * 62.5 / 2
    assert profile.service_time_p50.ToNanoseconds() / 1e9 == pytest.approx(p50, rel=0.05)
    joint = service_time(cost, 50, length).quantile(0.9)
    assert profile.service_time_p90.ToNanoseconds() / 1e9 == pytest.approx(joint)
    assert profile.batch_rows == 8
    assert profile.batch_service_time_p50.ToNanoseconds() > profile.service_time_p50.ToNanoseconds()
    assert profile.batch_service_time_p90.ToNanoseconds() > profile.batch_service_time_p50.ToNanoseconds()
    assert not profile.HasField("cost_model_error")
    assert profile.cost_model_interval == pytest.approx(cost.relative_interval(batch_work([50], [62.5], padded=True)))
    assert profile.first_token_time.ToNanoseconds() / 1e9 == pytest.approx(0.13)
    assert (profile.predictor_version, profile.cost_model_version) == ("prior/1", "prior/measured")
    assert (profile.hints.osl, profile.hints.vllm_priority) == (math.ceil(0.8 * 50 + 0.1 * 150 + 0.1 * 200), -3)


def test_a_measured_deployment_says_how_well_it_is_known() -> None:
    choice, record = random.Random(1), deployment(limits=EngineLimits(max_batch_rows=8))
    fit = CostFit(record)
    for _ in range(20):
        fit.fold(random_batch(choice))
    length = LengthDistribution((100, 200), (0.8, 0.2), 0.1)
    profile = resource_profile(record, 50, length, fit.model, priority=0, predictor_version="prior/1")
    prior = resource_profile(
        record, 50, length, CostModel.from_prior(record.step_time_prior), priority=0, predictor_version="prior/1"
    )
    assert profile.cost_model_version == "fit/20"
    assert 0 < profile.cost_model_error < 0.1
    assert profile.cost_model_interval < prior.cost_model_interval / 3
    truth = TRUTH.alone_seconds(50, 62.5)
    assert profile.service_time_p50.ToNanoseconds() / 1e9 == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(
    ("backlog", "seconds"),
    [
        (None, 1.0),
        (Backlog(queued=80, running=20, work_p50=Duration(seconds=500), publish_time=timestamp(99_000)), 5.0),
        (Backlog(queued=80, running=20, work_p50=Duration(seconds=500), publish_time=timestamp(80_000)), 1.0),
        (Backlog(queued=80, running=20, work_p50=Duration(seconds=1), publish_time=timestamp(99_000)), 0.1),
        (Backlog(queued=1, work_p50=Duration(seconds=5_000), publish_time=timestamp(99_000)), 60.0),
        (Backlog(publish_time=timestamp(99_000)), 0.1),
    ],
    ids=["none", "fresh", "stale", "soon", "late", "empty"],
)
def test_retry_after(backlog: Backlog | None, seconds: float) -> None:
    assert refusals.retry_seconds(backlog, depth=100, limit=100, now_ms=100_000) == pytest.approx(seconds)


def test_refusals_carry_their_numbers() -> None:
    creating = deployment(state=DEPLOYMENT_STATE_CREATING)
    assert "deployments/a is CREATING" in refusals.model_not_deployed("m", [creating]).message
    assert "no deployment" in refusals.model_not_deployed("m", []).message
    long = refusals.prompt_too_long(700, 512, "query").refusal
    assert (long.prompt_too_long.tokens, long.prompt_too_long.limit) == (700, 511)
    for seconds, retry in ((None, 1_000), (4.5, 4_500), (0.0, 100), (1e9, 60_000)):
        overloaded = refusals.predictor_overloaded(7, 8, seconds).refusal.predictor_overloaded
        assert (overloaded.waiting, overloaded.limit, overloaded.retry_after.ToMilliseconds()) == (7, 8, retry)
    full = refusals.queue_full("m", 10, 10, 2.5).refusal
    assert (full.queue_full.depth, full.queue_full.limit) == (10, 10)
    assert full.queue_full.retry_after.ToMilliseconds() == 2_500
