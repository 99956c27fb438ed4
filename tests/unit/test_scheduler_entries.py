"""Entries of the queue that make no sense are told from those that a core can decide on."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.domain.entries import is_name_of, problem_of
from uellm_scheduler.policies import POLICIES

from tests.support.nonsense import entries
from tests.support.world import MODEL, deployment, submission
from uellm.v1.stream_pb2 import ProfiledQuery

ENTRY = "1700000000000-0"


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(made=st.lists(entries(), min_size=1, max_size=5), policy=st.sampled_from(sorted(POLICIES)))
def test_a_core_decides_on_everything_that_makes_sense(made: list[ProfiledQuery], policy: str) -> None:
    core = SchedulerCore(MODEL, 1, POLICIES[policy])
    core.step(on.DeploymentsChanged((deployment(),)), 1_700_000_000_000)
    for number, query in enumerate(made):
        query.name = f"tenants/t/models/{MODEL}/queries/q{number}"
        query.schema_version %= 2
        if not problem_of(ENTRY, query):
            core.step(on.QueriesTaken((on.TakenQuery(query.name, ENTRY, query),)), 1_700_000_000_000)
    core.step(on.Tick(), 1_700_000_060_000)


def test_a_good_entry_has_no_problem() -> None:
    assert problem_of(ENTRY, submission("q", slo_seconds=5).entry) == ""


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"schema_version": 2}, "schema_version is 2, this scheduler knows 1"),
        ({"priority": 2**20}, "priority"),
        ({"slo": {"confidence": float("nan")}}, "probability"),
        ({"slo": {"completion": {"seconds": 2**60}}}, "deadline"),
        ({"profile": {"prompt_tokens": 2**32 - 1}}, "tokens"),
        ({"profile": {"output_length": {"p90_tokens": float("inf")}}}, "tokens"),
        ({"profile": {"kv_cache_bytes_limit": 2**63 - 1}}, "bytes"),
    ],
)
def test_a_problem_is_named(change: dict[str, object], part: str) -> None:
    query = submission("q").entry
    query.MergeFrom(ProfiledQuery(**change))
    assert part in problem_of(ENTRY, query)


def test_an_id_that_is_no_time_is_a_problem() -> None:
    assert "id" in problem_of(f"{2**63}-0", submission("q").entry)


@pytest.mark.parametrize(
    "name", ["", "x", "tenants/t/models/other/queries/q", f"tenants/t/models/{MODEL}/queries/a:b", "tenants//models//"]
)
def test_names_of_something_else(name: str) -> None:
    assert not is_name_of(name, MODEL)
    assert is_name_of(f"tenants/t/models/{MODEL}/queries/q", MODEL)
