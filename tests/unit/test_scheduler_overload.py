"""Which queries are refused when there is too much: against brute force, and as `Submit` sees it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from uellm_scheduler.domain.overload import Work, demand, surplus

from uellm.cost.demand import DemandPoint, lacking_seconds

queries = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=8)
"""(seconds until due, seconds of work)"""


def work(jobs: list[tuple[int, int]], wait: float = 0.0) -> Work:
    order = sorted(range(len(jobs)), key=lambda number: jobs[number][0])
    left, seconds = zip(*(jobs[number] for number in order), strict=True)
    return Work(np.array(order), np.array(left, float), np.array(seconds, float), wait)


def fits(jobs: list[tuple[int, int]], wait: float = 0.0) -> bool:
    return not jobs or bool((work(jobs, wait).slack >= 0).all())


@given(queries, st.integers(0, 5))
def test_as_few_are_refused_as_can_be(jobs: list[tuple[int, int]], wait: int) -> None:
    refused = set(surplus(work(jobs, wait)).tolist())
    assert fits([job for number, job in enumerate(jobs) if number not in refused], wait)
    fewer = combinations(range(len(jobs)), len(jobs) - len(refused) + 1)
    assert not any(fits([jobs[number] for number in kept], wait) for kept in fewer)


@given(queries, st.integers(1, 60), st.integers(1, 30))
def test_what_submit_refuses_the_policy_would_refuse(jobs: list[tuple[int, int]], due: int, seconds: int) -> None:
    waiting = work(jobs)
    refused = set(surplus(waiting).tolist())
    kept = [job for number, job in enumerate(jobs) if number not in refused]
    points = demand(work(kept)) if kept else (DemandPoint(0.0, 0.0, 0.0),)
    lacking = lacking_seconds(points, due, seconds) > 0 or seconds > due
    # Last among equals: it is the longest only if nothing is as long.
    alike = any(took == seconds for _, took in kept)
    if not alike:
        assert lacking == (len(kept) in surplus(work([*kept, (due, seconds)])).tolist())


def test_a_curve_has_few_points_and_its_last_is_the_latest_deadline() -> None:
    jobs = [(number + 1, 1) for number in range(1_000)]
    points = demand(work(jobs, wait=0.5))
    assert len(points) == 16
    assert points[0] == DemandPoint(1.0, -0.5, 1.0)
    assert points[-1] == DemandPoint(1_000.0, -0.5, 1.0)
    assert demand(Work(np.empty(0, np.intp), np.empty(0), np.empty(0), 0.0)) == ()
