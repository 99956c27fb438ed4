"""What the scheduler has learnt and sees, from Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from uellm.cost.model import CostModel
from uellm.cost.steps import Work
from uellm.messaging.connection import RedisClient
from uellm.messaging.costs import CostStore
from uellm.messaging.keys import ModelKeys, queue_name
from uellm.rpc.errors import UnavailableError
from uellm.v1.stream_pb2 import Backlog
from uellm_deployer.app.signals import QueueStatus
from uellm_deployer.domain.deployment import Deployment
from uellm_deployer.domain.performance import Measurement, reference_point
from uellm_deployer.domain.plan import StepTime
from uellm_deployer.encoding import record_message

T = TypeVar("T")


class RedisFeedback:
    """Reads cost models and backlogs."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._costs = CostStore(redis)

    async def measurements(self, deployments: Collection[Deployment]) -> Mapping[str, Measurement]:
        """By resource name, of those of whose present plan something was learnt."""
        found = {}
        for model in sorted({one.plan.spec.model for one in deployments}):
            for state in await _reached(self._costs.read(model)):
                found[state.deployment] = state
        # Where the state is of another plan or makes no sense it is the prior, which is learnt from nothing.
        models = {one.name: CostModel.of(record_message(one, ""), found.get(one.name)) for one in deployments}
        return {
            one.name: _measurement(one, models[one.name]) for one in deployments if models[one.name].observations > 0
        }

    async def queues(self, names: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], QueueStatus]:
        """By model and shard, of those that have an owner."""
        wanted = sorted(names)
        if not wanted:
            return {}
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in wanted:
                pipeline.get(ModelKeys.of(queue_name(*name)).backlog)
            values = await _reached(pipeline.execute())
        read = {name: _status(value) for name, value in zip(wanted, values, strict=True)}
        return {name: status for name, status in read.items() if status is not None}


def _measurement(deployment: Deployment, model: CostModel) -> Measurement:
    learnt = model.step_time
    rows, context = reference_point(deployment.plan.spec)
    return Measurement(
        step_time=StepTime(
            base_seconds=learnt.base,
            per_row_seconds=learnt.per_row,
            per_context_token_seconds=learnt.per_context_token,
            prefill_per_token_seconds=learnt.prefill_per_token,
            startup_seconds=learnt.startup,
            source=model.version,
        ),
        batches=model.observations,
        least_seconds=model.interval(Work(steps=1, row_steps=rows, context_tokens=context))[0],
    )


def _status(value: bytes | None) -> QueueStatus | None:
    if value is None:
        return None
    try:
        backlog = Backlog.FromString(value)
    except DecodeError:
        return None
    return QueueStatus(backlog.queued, backlog.work_p50.ToNanoseconds() / 1e9)


async def _reached(call: Awaitable[T]) -> T:
    try:
        return await call
    except (RedisError, OSError) as error:
        raise UnavailableError(f"Redis cannot be reached: {error}", reason="REDIS_UNAVAILABLE") from None
