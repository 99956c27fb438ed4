"""Whether a query's deadlines can be kept, from the backlog that the owner of its model's queue publishes.

What the policy in force would refuse as soon as it saw it is refused at `Submit`, where it costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from uellm.cost.demand import DemandPoint, lacking_seconds, least_chance, shortfall
from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.cost.service import service_time
from uellm.rpc.errors import RefusedError
from uellm.rpc.refusals import duration
from uellm.v1.query_pb2 import (
    REFUSAL_REASON_DEADLINE_INFEASIBLE,
    DeadlineInfeasible,
    Refusal,
    ResourceProfile,
    Slo,
)
from uellm.v1.stream_pb2 import Backlog

STALE_AFTER_MS = 3_000
"""The owner publishes at least once a second; an older backlog is of one that is gone."""
DEFAULT_CONFIDENCE = 0.9
LEAST_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a deadline can't be kept."""

    before: float
    """Seconds until it would be served."""
    retry: float | None
    """Seconds after which the same query would be taken; None: never, it takes longer than it has."""


def check_deadlines(slo: Slo, profile: ResourceProfile, cost: CostModel, backlog: Backlog | None, now_ms: int) -> None:
    """Check a query's deadlines, which count from now.

    Args:
        slo: its objectives.
        profile: what it is predicted to cost.
        cost: of the deployment that it was profiled for.
        backlog: as published last; without a fresh one, and where the policy in force refuses nothing, all is well.
        now_ms: the queue's clock.

    Raises:
        RefusedError: DEADLINE_INFEASIBLE, with the predicted finish and when to try again.
    """
    if backlog is None or not backlog.deployments:
        return
    age = (now_ms - backlog.publish_time.ToMilliseconds()) / 1000
    if age * 1000 > STALE_AFTER_MS:
        return
    wait = max(0.0, min(_seconds(one.soonest_free) for one in backlog.deployments) - age)
    verdict = _first_token(slo, profile, wait) or _completion(slo, profile, cost, backlog, wait)
    if verdict is not None:
        raise _refused(slo, profile, verdict)


def _first_token(slo: Slo, profile: ResourceProfile, wait: float) -> Verdict | None:
    due, takes = _seconds(slo.first_token), _seconds(profile.first_token_time)
    if not slo.HasField("first_token") or wait + takes <= due:
        return None
    return Verdict(wait, wait if takes <= due else None)


def _completion(slo: Slo, profile: ResourceProfile, cost: CostModel, backlog: Backlog, wait: float) -> Verdict | None:
    if not slo.HasField("completion"):
        return None
    due = _seconds(slo.completion)
    confidence = slo.confidence or DEFAULT_CONFIDENCE
    length = LengthDistribution.from_proto(profile.output_length)
    alone = service_time(cost, profile.prompt_tokens, length)
    hopeless = float(least_chance(confidence))
    points = [DemandPoint.from_proto(point) for point in backlog.demand]
    work = length.mean * backlog.seconds_per_token
    too_late = alone.cdf(due - wait) <= hopeless
    if not too_late and lacking_seconds(points, due, work) <= 0:
        return None
    missing = shortfall(points, due, work)
    ever = alone.cdf(due) > hopeless
    return Verdict(wait + missing, max(LEAST_RETRY_SECONDS, wait, missing) if ever else None)


def _refused(slo: Slo, profile: ResourceProfile, verdict: Verdict) -> RefusedError:
    middle, high = (verdict.before + _seconds(one) for one in (profile.service_time_p50, profile.service_time_p90))
    due = slo.completion if slo.HasField("completion") else slo.first_token
    advice = "ask for fewer tokens, or give it more time"
    detail = DeadlineInfeasible(
        predicted_finish_p50=duration(middle), predicted_finish_p90=duration(high), deadline=due
    )
    if verdict.retry is not None:
        detail.retry_after.CopyFrom(duration(verdict.retry))
        advice = f"try again in {verdict.retry:.1f} s, {advice}"
    message = f"the answer is expected after {middle:.1f} s, its deadline is {_seconds(due):.1f} s: {advice}"
    refusal = Refusal(reason=REFUSAL_REASON_DEADLINE_INFEASIBLE, message=message, deadline_infeasible=detail)
    return RefusedError(refusal)


def _seconds(value: Duration) -> float:
    return float(value.ToNanoseconds() / 1e9)
