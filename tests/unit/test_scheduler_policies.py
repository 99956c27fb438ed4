"""Policies against hand-worked examples and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uellm_scheduler.app.batches import Engine
from uellm_scheduler.domain.backlog import predicted_work_seconds
from uellm_scheduler.domain.pending import PendingTable
from uellm_scheduler.domain.pending_query import PendingQuery
from uellm_scheduler.domain.policy import BatchBudget, Decision, Policy, QueueView
from uellm_scheduler.policies import POLICIES
from uellm_scheduler.policies.slo_odbs import Constants, SloOdbs

from tests.support.world import deployment, submission
from uellm.v1.stream_pb2 import StepTimePrior


def view_of(*queries: tuple[float, float], rows: int = 10, kv_budget_bytes: int = 10**9) -> QueueView:
    """Queries as (SLO in s, predicted length in tokens), arriving a millisecond apart."""
    table = PendingTable()
    for number, (slo, length) in enumerate(queries):
        made = submission(f"q{number:03}", slo_seconds=slo, p50=length)
        table.add(PendingQuery.of(made.name, f"{1000 + number}-0", made.entry))
    record = deployment(rows=rows)
    record.limits.kv_budget_bytes = kv_budget_bytes
    return QueueView(table, table.slots(), (Engine(record).view(),))


def batches(decision: Decision, view: QueueView) -> list[list[str]]:
    return [[view.table.at(slot).name[-3:] for slot in batch.slots] for batch in decision.batches]


def decide(policy: Policy, view: QueueView) -> list[list[str]]:
    return batches(policy.decide(view, 2_000, np.random.default_rng(0)), view)


def test_fifo_fills_the_batch_in_order_of_arrival():
    view = view_of((0, 9), (1, 500), (90, 3), (2, 7), (3, 7), rows=3)
    assert decide(POLICIES["fifo"], view) == [["000", "001", "002"]]


def test_the_paper_s_metric_by_hand():
    # Joining (SLO 20 s, 100 tokens) to a batch of 2 whose maxima are 15 s and 80 tokens:
    # 1 * (20 + 15) * 3 * 1.2 + 0.5 * (100 + 80) * 3 * 1.2 = 126 + 324 = 450
    assert Constants().metric(20, 100, 2, 15, 80) == pytest.approx(450)


def test_slo_odbs_worked_by_hand():
    # Composite keys slo + 0.5 * length: 000: 60, 001: 10 + 20 = 30, 002: 12 + 25 = 37, 003: 100 + 400 = 500.
    # Sorted: 001, 002, 000, 003. Threshold 450. Metrics of joining:
    #   001 opens a batch.
    #   002: (12 + 10) * 2 * 1.2 + 0.5 * (50 + 40) * 2 * 1.2 = 52.8 + 108   = 160.8 -> joins
    #   000: (30 + 12) * 3 * 1.2 + 0.5 * (60 + 50) * 3 * 1.2 = 151.2 + 198  = 349.2 -> joins
    #   003: (100 + 30) * 4 * 1.2 + 0.5 * (800 + 60) * 4 * 1.2 = 624 + 2064 = 2688  -> opens the next
    # Tightest SLOs are 10 s and 100 s: the first batch runs first.
    view = view_of((30, 60), (10, 40), (12, 50), (100, 800))
    assert decide(SloOdbs(Constants(threshold=450)), view) == [["001", "002", "000"]]


def test_slo_odbs_runs_the_batch_with_the_tightest_slo_first():
    # Keys: 000: 200 + 5 = 205, 001: 10 + 450 = 460: apart under a small threshold, the second is more urgent.
    view = view_of((200, 10), (10, 900))
    assert decide(SloOdbs(Constants(threshold=100)), view) == [["001"]]


def test_with_the_published_threshold_it_is_sort_and_cut_every_ten():
    view = view_of(*[(float(100 - number), 50.0) for number in range(25)], rows=32)
    expected = [f"{number:03}" for number in range(24, 14, -1)]
    assert decide(POLICIES["slo-odbs"], view) == [expected]


def test_edf_takes_the_nearest_deadlines_and_best_effort_last():
    view = view_of((0, 5), (60, 5), (10, 900), (10, 1), (0, 5), rows=4)  # SLO 0: none
    assert decide(POLICIES["edf"], view) == [["002", "003", "001", "000"]]


def test_sjf_takes_the_shortest_answers_that_are_left():
    view = view_of((1, 300), (1, 20), (1, 20), (1, 7), rows=3)
    assert decide(POLICIES["sjf"], view) == [["003", "001", "002"]]


def test_s3_packs_by_the_sum_of_predicted_lengths():
    # 100 + 300 + 600 = 1,000 tokens fit 1,024; 700 more do not.
    view = view_of((1, 700), (1, 100), (1, 600), (1, 300))
    assert decide(POLICIES["s3"], view) == [["001", "003", "002"]]
    alone = view_of((1, 5_000), (1, 6_000))
    assert decide(POLICIES["s3"], alone) == [["000"]]


def test_odbs_sees_lengths_only_and_slo_dbs_slos_only():
    view = view_of((30, 500), (200, 10), (10, 300), rows=2)
    assert decide(POLICIES["odbs"], view) == [["001", "002"]]
    assert decide(POLICIES["slo-dbs"], view) == [["002", "000"]]


def slow(view: QueueView, *, base: float, per_row: float = 0.0) -> QueueView:
    """The same queue before an engine with this step time, 4 rows a batch."""
    record = deployment(rows=4)
    record.step_time_prior.CopyFrom(StepTimePrior(base_seconds=base, per_row_seconds=per_row))
    return QueueView(view.table, view.slots, (Engine(record).view(),))


def test_qlm_edf_puts_those_last_that_are_estimated_late():
    # A step of a full batch takes 0.1 s: 40 tokens/s, so that answers of 40 tokens on average end one a second. Now is
    # 1 s after the arrivals: estimated ends, in order of deadlines, are 2, 3, 4 and 5 s after them.
    view = slow(view_of((2.5, 40), (2.6, 40), (90, 40), (4.5, 40)), base=0.1)
    assert decide(POLICIES["qlm-edf"], view) == [["000", "003", "002", "001"]]


def test_saber_leaves_out_what_would_make_others_late():
    # Alone a row makes a step in 0.11 s, with another one in 0.12 s. 1 s of the time is gone: 90 tokens end after 9.9 s
    # alone, but after 10.8 s beside another row.
    view = slow(view_of((11.5, 90), (300, 100)), base=0.1, per_row=0.01)
    assert decide(POLICIES["saber"], view) == [["000"]]
    roomy = slow(view_of((12.5, 90), (300, 100)), base=0.1, per_row=0.01)
    assert decide(POLICIES["saber"], roomy) == [["000", "001"]]
    hopeless = slow(view_of((2, 90), (3, 100)), base=0.1, per_row=0.01)
    assert decide(POLICIES["saber"], hopeless) == [["000", "001"]], "served late"


queries = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 5.0, 60.0, 300.0]), st.floats(1, 600)), min_size=1, max_size=40)


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=60, deadline=None)
@given(queries=queries, rows=st.integers(1, 16), budget=st.sampled_from([1, 50_000, 10**9]))
def test_laws_of_every_policy(name, queries, rows, budget):
    view = view_of(*queries, rows=rows, kv_budget_bytes=budget)
    decision = POLICIES[name].decide(view, 2_000, np.random.default_rng(0))
    used = [slot for batch in decision.batches for slot in batch.slots]
    refused = [plan.slot for plan in decision.refusals]
    assert used or len(refused) == len(view.slots), "an idle engine is used"
    assert not set(used) & set(refused)
    assert len(used) == len(set(used))
    assert set(used) <= set(view.slots.tolist())
    for batch in decision.batches:
        assert len(batch.slots) <= rows
        fits = BatchBudget(view.engines[0])
        for slot in batch.slots:
            assert fits.take(
                slot,
                int(view.table.column("prompt_tokens")[slot]),
                int(view.table.column("limit_tokens")[slot]),
            )
    assert POLICIES[name].decide(view, 2_000, np.random.default_rng(0)) == decision, "pure"


def test_rows_whose_window_is_full_take_no_more():
    record = deployment(rows=10)
    record.facts.kv_cache_layers.add(layers=1, bytes_per_token=100, window_tokens=51)
    record.limits.kv_budget_bytes = 3 * 50 * 100
    budget = BatchBudget(Engine(record).view())
    assert [budget.take(slot, 400, 400) for slot in range(4)] == [True, True, True, False]


def test_a_busy_engine_gets_nothing():
    view = view_of((1, 1))
    record = deployment()
    record.limits.max_concurrent_batches = 0
    busy = QueueView(view.table, view.slots, (Engine(record).view(),))
    for policy in POLICIES.values():
        assert decide(policy, busy) == []


def test_predicted_work_by_hand():
    # A full batch of 4 rows makes a step in 0.1 + 4 * 0.025 = 0.2 s: 20 tokens a second. 30 + 70 tokens take 5 s.
    record = deployment(rows=4)
    record.step_time_prior.base_seconds = 0.1
    record.step_time_prior.per_row_seconds = 0.025
    view = view_of((0, 30), (0, 70))
    assert predicted_work_seconds(view.table, [Engine(record).view()], "p50_tokens") == pytest.approx(5)
    assert predicted_work_seconds(view.table, [Engine(record).view()], "p90_tokens") == pytest.approx(10)
    assert predicted_work_seconds(view.table, [], "p50_tokens") == 0


class TestPendingTable:
    def test_rows_come_back_as_they_went_in_and_slots_are_reused(self):
        table = PendingTable(capacity=2)
        made = [submission(f"q{number}", p50=number + 1) for number in range(5)]
        for number, one in enumerate(made):
            table.add(PendingQuery.of(one.name, f"{100 - number}-0", one.entry))
        assert [table.at(int(slot)).name for slot in table.slots()] == [one.name for one in reversed(made)]
        taken = table.remove(made[2].name)
        assert taken is not None
        assert (taken.name, taken.needs.p50_tokens) == (made[2].name, 3)
        assert made[2].name not in table
        assert table.remove(made[2].name) is None
        assert len(table) == 4
        assert table.oldest_ms() == 96
        with pytest.raises(KeyError):
            table.add(PendingQuery.of(made[0].name, "1-0", made[0].entry))
