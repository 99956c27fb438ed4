"""What `Submit` says of deadlines, from a published backlog."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from uellm_profiler.domain.admission import check_deadlines
from uellm_profiler.domain.profile import resource_profile

from uellm.cost.demand import DemandPoint
from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.cost.steps import StepTime
from uellm.messaging.clock import timestamp
from uellm.rpc.errors import RefusedError
from uellm.v1.query_pb2 import DeadlineInfeasible, Slo
from uellm.v1.stream_pb2 import Backlog, DeploymentBacklog, DeploymentRecord, EngineLimits

NOW = 1_000_000
TENTH = CostModel.from_prior(StepTime(0.1, 0, 0, 0, 0).to_prior("measured"))
"""A token takes 0.1 s."""
HUNDRED = LengthDistribution((99, 101), (0.0, 1.0), 0.0)
"""About a hundred tokens, which take 10 s."""


def seconds(value: float) -> Duration:
    message = Duration()
    message.FromMilliseconds(round(1000 * value))
    return message


def backlog(wait: float = 0.0, *points: DemandPoint, age_ms: int = 0) -> Backlog:
    return Backlog(
        publish_time=timestamp(NOW - age_ms),
        deployments=[DeploymentBacklog(deployment="deployments/a", soonest_free=seconds(wait))],
        demand=[point.to_proto() for point in points],
        seconds_per_token=0.02,
    )


def check(published: Backlog | None, **slo: Any) -> None:
    record = DeploymentRecord(name="deployments/a", limits=EngineLimits(max_batch_rows=8))
    profile = resource_profile(record, 5, HUNDRED, TENTH, priority=0, predictor_version="p/1")
    check_deadlines(Slo(**slo), profile, TENTH, published, NOW)


def refused(published: Backlog, **slo: Any) -> DeadlineInfeasible:
    with pytest.raises(RefusedError) as error:
        check(published, **slo)
    assert error.value.reason == "DEADLINE_INFEASIBLE"
    return error.value.refusal.deadline_infeasible


def test_what_an_idle_engine_can_keep_is_taken() -> None:
    check(backlog(), completion=seconds(12))
    check(backlog(), first_token=seconds(1))
    check(backlog(wait=100))


def test_what_takes_longer_than_it_may_is_refused_for_good() -> None:
    detail = refused(backlog(), completion=seconds(3))
    assert not detail.HasField("retry_after")
    assert detail.deadline.seconds == 3
    assert 9.5 < detail.predicted_finish_p50.ToMilliseconds() / 1000 < 10.5
    assert detail.predicted_finish_p90.ToMilliseconds() >= detail.predicted_finish_p50.ToMilliseconds()


def test_what_would_have_to_wait_too_long_may_try_again() -> None:
    check(backlog(wait=20), completion=seconds(60))
    detail = refused(backlog(wait=20), completion=seconds(15))
    assert detail.retry_after.seconds == 20
    assert 29.5 < detail.predicted_finish_p50.ToMilliseconds() / 1000 < 30.5
    detail = refused(backlog(wait=20), first_token=seconds(15))
    assert detail.retry_after.seconds == 20


def test_a_wait_passes_while_the_backlog_ages() -> None:
    refused(backlog(wait=9), completion=seconds(12))
    check(backlog(wait=9, age_ms=2_900), completion=seconds(12))
    check(backlog(wait=9, age_ms=60_000), completion=seconds(1))


@pytest.mark.parametrize("published", [None, Backlog(publish_time=timestamp(NOW))], ids=["none", "refuses-nothing"])
def test_without_a_backlog_that_speaks_of_engines_all_is_taken(published: Backlog | None) -> None:
    check(published, completion=seconds(1))


def test_the_longest_of_too_much_is_refused() -> None:
    # 2 s of work each; until its deadline 1.5 s are free.
    full = DemandPoint(due=30, slack=1.5, longest=1.0)
    detail = refused(backlog(0, full), completion=seconds(30))
    assert (detail.retry_after.ToMilliseconds(), detail.predicted_finish_p50.seconds) == (500, 10)
    check(backlog(0, full), completion=seconds(31))
    check(backlog(0, DemandPoint(due=30, slack=1.5, longest=2.5)), completion=seconds(30))
    check(backlog(0, DemandPoint(due=30, slack=2.5, longest=1.0)), completion=seconds(30))
