"""The demo's workload and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uellm.cli.demo.report import row_of, summarise, write_json
from uellm.cli.demo.serving import Request
from uellm.cli.demo.workload import SLO_SECONDS, plan_arrivals, read_prompts
from uellm.client import Outcome, Submitted
from uellm.v1.query_pb2 import (
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    QUERY_STATE_COMPLETED,
    LengthDistribution,
    ResourceProfile,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "prompts.jsonl"


def test_the_prompts_are_the_examples_and_well_formed() -> None:
    prompts = read_prompts()
    assert [json.loads(line)["id"] for line in EXAMPLES.read_text().splitlines()] == [one.id for one in prompts]
    assert len(prompts) >= 48
    assert len({one.id for one in prompts}) == len({one.prompt for one in prompts}) == len(prompts)
    assert {one.service_class for one in prompts} == set(SLO_SECONDS)


def test_arrivals_are_a_function_of_the_seed_and_use_every_prompt_before_one_again() -> None:
    prompts = read_prompts()
    count = 2 * len(prompts) + 5
    arrivals = plan_arrivals(prompts, count, seed=7, rate=2.0)
    assert arrivals == plan_arrivals(prompts, count, seed=7, rate=2.0)
    assert arrivals != plan_arrivals(prompts, count, seed=8, rate=2.0)
    assert len({one.id for one in arrivals}) == count
    assert {one.prompt.id for one in arrivals[: len(prompts)]} == {one.id for one in prompts}
    times = [one.at_seconds for one in arrivals]
    assert times == sorted(times)
    assert times[-1] / count == pytest.approx(0.5, rel=0.3)


def make_request(index: int, *, seconds: float, tokens: int, cut: bool = False) -> Request:
    arrival = plan_arrivals(read_prompts(), 3, seed=1, rate=1.0)[index]
    profile = ResourceProfile(output_length=LengthDistribution(p50_tokens=20, p90_tokens=50))
    outcome = Outcome(state=QUERY_STATE_COMPLETED, output_tokens=tokens, profile=profile, batch_id="b", batch_rows=2)
    outcome.finish_reason = FINISH_REASON_LENGTH if cut else FINISH_REASON_STOP
    outcome.slo_met = seconds <= arrival.slo_seconds
    outcome.timing.accept_time.FromSeconds(100)
    outcome.timing.dispatch_time.FromSeconds(101)
    outcome.timing.finish_time.FromMilliseconds(round((100 + seconds) * 1000))
    accepted = outcome.timing.accept_time.ToDatetime()
    return Request(arrival, query=Submitted(f"q{index}", profile, accepted, 1), outcome=outcome)


def test_the_summary_counts_over_all_that_was_submitted(tmp_path: Path) -> None:
    refused = Request(plan_arrivals(read_prompts(), 3, seed=1, rate=1.0)[2], refusal="QUEUE_FULL")
    requests = [make_request(0, seconds=4, tokens=30), make_request(1, seconds=500, tokens=70, cut=True), refused]
    rows = [row_of(request) for request in requests]
    summary = summarise(rows, requests)
    assert (summary.submitted, summary.completed, summary.refused_at_submit) == (3, 2, 1)
    assert summary.slo_attainment == pytest.approx(1 / 3)
    assert summary.output_tokens == 100
    assert summary.tokens_per_second == pytest.approx(100 / 500)
    assert (summary.latency_p50_seconds, summary.latency_p95_seconds) == (4, 500)
    assert (summary.batches, summary.mean_batch_rows) == (1, 2)
    assert summary.cut_off_share == summary.within_predicted_p90_share == 0.5
    assert summary.exactly_one_outcome
    write_json(tmp_path / "demo.json", requests, seed=1)
    written = json.loads((tmp_path / "demo.json").read_text())
    assert [row["state"] for row in written["requests"]] == ["completed", "completed", "QUEUE_FULL"]
    assert written["summary"]["slo_attainment"] == pytest.approx(1 / 3)


def test_a_defect_is_counted() -> None:
    request = make_request(0, seconds=1, tokens=1)
    request.defects.append("2 outcome events")
    assert not summarise([row_of(request)], [request]).exactly_one_outcome
