"""The paper's experiments: what as published means, and what fair means."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_deployer.domain.helr.cost import Span
from uellm_deployer.domain.helr.problem import Goal
from uellm_deployer.domain.helr.solve import solve

from benchmarks.paper.claims import claims_section
from benchmarks.paper.deployment import alternating, measured_step, on, problem, step_seconds, with_copies
from benchmarks.paper.fair import closed
from benchmarks.paper.fitting import COMMITTED, Fitted
from benchmarks.paper.published import AS_PUBLISHED, LADDER, experiment
from benchmarks.paper.section import Section
from benchmarks.paper.systems import (
    MORPHLING,
    RELOAD_SECONDS,
    S3_SYSTEM,
    SYSTEMS,
    UELLM_ALL,
    UELLM_BATCH,
    UELLM_DEPLOY,
    run,
    uncut,
)
from benchmarks.paper.workload import PROMPTS, QUERIES, answers, queries

# A step takes 1 s whatever is in it, a batch 10 s, the first one 15 s more.
SIMPLE = Fitted((1.0, 0.0, 0.0, 25.0, 10.0))
TIMES = dict.fromkeys((1, 2, 3, 4), SIMPLE)
ASKED = queries(1)
LENGTHS = answers(ASKED, "test")


def test_a_batch_ends_with_its_longest_answer_and_the_next_begins_then() -> None:
    outcome = run(UELLM_DEPLOY, ASKED, LENGTHS, TIMES)
    cut = [min(length, 1_024 - 41) for length in LENGTHS]
    longest = [max(cut[first : first + 10]) for first in range(0, QUERIES, 10)]
    # The prefill yields the first token.
    ends = list(accumulate(10 + tokens - 1 for tokens in longest))
    assert outcome.makespan == pytest.approx(15 + ends[-1], abs=10 * 25)
    assert outcome.batches == 10
    uncut_at_all = run(UELLM_DEPLOY, ASKED, [min(length, 400) for length in LENGTHS], TIMES)
    longest = [min(400, max(LENGTHS[first : first + 10])) for first in range(0, QUERIES, 10)]
    assert uncut_at_all.makespan == pytest.approx(15 + sum(10 + tokens - 1 for tokens in longest))
    assert uncut_at_all.steps == sum(longest)
    assert uncut_at_all.padded_tokens == pytest.approx(10 * sum(longest) / uncut_at_all.makespan)
    assert uncut_at_all.useful_tokens < uncut_at_all.padded_tokens
    assert uncut_at_all.cut == 0


def test_uellm_all_cuts_answers_at_its_longest_prediction_and_fifty() -> None:
    long = [1_500] * QUERIES
    outcome = run(UELLM_ALL, ASKED, long, TIMES)
    assert outcome.cut == 1
    # Sorted by 1 * SLO + 0.5 * length, cut every ten.
    order = sorted(ASKED, key=lambda query: query.slo_seconds + 0.5 * query.predicted_tokens)
    batches = [order[first : first + 10] for first in range(0, QUERIES, 10)]
    caps = [
        max(query.predicted_tokens for query in batch) + 50 - max(query.prompt_tokens for query in batch)
        for batch in batches
    ]
    assert outcome.steps == sum(caps)
    whole = run(replace(UELLM_ALL, cap=uncut), ASKED, long, TIMES)
    assert whole.cut == 0
    assert whole.steps == 10 * 1_500
    assert whole.makespan > outcome.makespan


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000))
def test_no_cap_means_the_same_answers_for_everyone(seed: int) -> None:
    asked = queries(seed)
    lengths = [min(length, 1_500) for length in answers(asked, str(seed))]
    for system in (UELLM_ALL, UELLM_DEPLOY):
        outcome = run(replace(system, cap=uncut), asked, lengths, COMMITTED)
        assert outcome.useful_tokens * outcome.makespan == pytest.approx(sum(lengths))
        assert outcome.cut == 0


def test_a_stranger_slows_all_but_the_first_run_of_s3_down() -> None:
    found = experiment(AS_PUBLISHED, 0, COMMITTED, foreign=2.0)
    alone = experiment(AS_PUBLISHED, 0, COMMITTED, foreign=1.0)
    for name in ("UELLM-all", "UELLM-batch"):
        assert found[name] == alone[name]
    ratios = [a.makespan / b.makespan for a, b in zip(found["S3"], alone["S3"], strict=True)]
    assert ratios[0] == 1
    assert all(1.9 < ratio < 2 for ratio in ratios[1:])


def test_morphling_pays_for_its_stress_test_in_latency_and_not_in_misses() -> None:
    plain = run(replace(MORPHLING, stress_batches=0), ASKED, LENGTHS, TIMES)
    stressed = run(MORPHLING, ASKED, LENGTHS, TIMES)
    half = run(replace(MORPHLING, stress_batches=0), ASKED[:50], LENGTHS[:50], TIMES)
    assert stressed.makespan == pytest.approx(plain.makespan + half.makespan + RELOAD_SECONDS)
    assert stressed.missed == plain.missed
    assert stressed.busy < plain.busy == 1


def test_a_split_keeps_each_gpu_busy_for_its_share_of_the_time() -> None:
    split = run(UELLM_BATCH, ASKED, LENGTHS, TIMES)
    assert split.busy == pytest.approx(1 / 4)
    assert split.busy_of_four == pytest.approx(run(UELLM_DEPLOY, ASKED, LENGTHS, TIMES).busy_of_four, abs=0.01)


def test_on_the_last_rung_all_are_one_engine_with_another_order() -> None:
    last = LADDER[-1]
    changed = {system.name: last.change(system) for system in SYSTEMS}
    for system in changed.values():
        assert (system.gpus, system.rows, system.cap) == (1, 10, uncut)
        assert system.stress_batches == 0
        assert not system.foreign_load
    assert changed["S3"].policy.max_batch_rows == 10
    assert S3_SYSTEM.policy.max_batch_rows == 20
    found = experiment(last, 3, COMMITTED, foreign=2.0)
    assert found["Morphling"] == found["UELLM-deploy"]
    tokens = [one[0].useful_tokens * one[0].makespan for one in found.values()]
    # One that runs away ends with the context, of which its batch's longest prompt has taken its part.
    assert max(tokens) - min(tokens) <= 5 * (PROMPTS[1] - PROMPTS[0])


def test_equal_experiments_are_equal_and_others_are_not() -> None:
    assert experiment(AS_PUBLISHED, 0, COMMITTED, 1.0) == experiment(AS_PUBLISHED, 0, COMMITTED, 1.0)
    assert queries(0) != queries(1)
    assert answers(ASKED, "a") != answers(ASKED, "b")


def test_what_is_drawn_has_the_published_statistics() -> None:
    asked = [query for seed in range(40) for query in queries(seed)]
    slos = [fmean(query.slo_seconds for query in asked[fifth::100]) for fifth in (0, 20, 40, 60, 80)]
    assert slos == pytest.approx([235, 200, 165, 110, 95], abs=5)
    lengths = [length for seed in range(40) for length in answers(queries(seed), str(seed))]
    assert 0.005 < sum(length > 2_048 for length in lengths) / len(lengths) < 0.017
    assert fmean(min(length, 2_030) for length in lengths) == pytest.approx(212, rel=0.06)
    longest = sorted(max(query.predicted_tokens for query in queries(seed)) for seed in range(40))
    assert longest[4] < 709 < longest[-5]


def test_fair_runs_have_the_same_answers_whatever_the_policy() -> None:
    step = COMMITTED[1].step
    outcomes = [closed(policy, "measured", 0.1, 0, step) for policy in ("fifo", "slo-odbs", "uellm")]
    assert [one.refused for one in outcomes] == [0, 0, 0]
    totals = [one.useful_tokens * one.makespan for one in outcomes]
    assert totals == pytest.approx([totals[0]] * 3)
    assert len({one.makespan for one in outcomes}) == 3


def test_split_layers_cost_a_step_and_copies_do_not() -> None:
    whole = problem()
    layers = len(whole.model.layers)
    assert layers == 28
    # 6.2 billion parameters of two bytes.
    parts = (*whole.model.layers, whole.model.embedding, whole.model.head)
    assert sum(part.weight_bytes for part in parts) == pytest.approx(12.5e9, rel=0.01)
    one = step_seconds(whole, [Span((0,), 0, layers)])
    two = step_seconds(on(whole, 2), [Span((0,), 0, 14), Span((1,), 14, layers)])
    assert one < two < step_seconds(whole, alternating(layers))
    plan = solve(with_copies(whole), Goal.HELR, with_alternatives=False).plan
    assert len(plan.copies) == 4
    assert plan.latency_seconds == pytest.approx(one)
    assert measured_step(COMMITTED[2]) > 1.2 * measured_step(COMMITTED[1])


def test_each_claim_of_the_abstract_has_its_row() -> None:
    runs = [experiment(AS_PUBLISHED, number, COMMITTED, 1.5) for number in range(2)]
    fair = dict.fromkeys(("latency", "busy", "throughput", "missed", "missed twice as tight"), "?")
    section = claims_section(runs, runs, fair)
    assert [str(row[0]).split(" ")[0] for row in section.rows] == ["latency", "GPU", "throughput", "no"]


def test_a_section_is_a_table_of_markdown_and_plain_json() -> None:
    section = Section("A", ("Note.",), ("x", "y"), (("a", 1234.5), (None, 0.01234)))
    assert section.markdown() == "## A\n\nNote.\n\n| x | y |\n| --- | --- |\n| a | 1,234 |\n| - | 0.0123 |\n"
    assert json.loads(json.dumps(section.to_json()))["rows"] == [["a", 1234.5], [None, 0.01234]]
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        Section("A", (), ("x", "y"), (("a", 1.0, 2.0),))
