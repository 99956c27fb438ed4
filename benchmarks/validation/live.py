"""The live side: a workload sent to the embedded stack, and what the stack itself says of every query."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from uellm.client import AsyncClient, Endpoints
from uellm.client.requests import QueryOptions
from uellm.cost.lengths import LengthDistribution
from uellm.local.state import StackInfo
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.costs import CostStore
from uellm.messaging.keys import ModelKeys
from uellm.rpc.errors import RefusedError
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_REJECTED, Timing
from uellm.v1.stream_pb2 import CostModelState, DeploymentRecord, Observation, StepAggregates


@dataclass(frozen=True, slots=True)
class Wanted:
    """A query of a workload."""

    at: float
    """Seconds from the begin."""
    prompt: str
    max_output_tokens: int
    slo_class: str = "none"
    slo_seconds: float = 0.0
    """0: no deadline."""


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one. Times are Unix seconds by the queue's clock; 0: it did not happen."""

    wanted: Wanted
    sent: float
    """By the client's clock, which is that of the same machine."""
    predicted: LengthDistribution
    prompt_tokens: int
    refused: bool
    accepted: float = 0.0
    dispatched: float = 0.0
    first_token: float = 0.0
    finished: float = 0.0
    output_tokens: int = 0
    batch_id: str = ""

    @property
    def in_time(self) -> bool:
        """Whether the answer is whole and kept its deadline."""
        wanted = self.wanted.slo_seconds
        return not self.refused and (not wanted or self.finished - self.accepted <= wanted)


@dataclass(frozen=True, slots=True)
class LiveRun:
    """A workload served once."""

    policy: str
    known: CostModelState | None
    """What the scheduler had learnt of the engine before."""
    served: list[Served]
    batches: dict[str, StepAggregates]
    """What each batch cost, by the engine's own clock."""


class Stack:
    """The stack that is asked."""

    def __init__(self, client: AsyncClient, redis: RedisClient, record: DeploymentRecord) -> None:
        self.record = record
        self._client = client
        self._redis = redis

    async def run(self, policy: str, workload: Sequence[Wanted], *, one_by_one: bool = False) -> LiveRun:
        """Serve a workload; each query is sent when its time has come, whatever became of the others."""
        await self._client.set_policy(policy)
        known = await CostStore(self._redis).read(self.record.model)
        begin = time.monotonic()
        if one_by_one:
            served = [await self._ask(one, begin) for one in workload]
        else:
            served = await asyncio.gather(*(self._ask(one, begin) for one in workload))
        names = {name: one.batch_id for name, one in served}
        batches = {names[name]: cost for name, cost in (await self._costs()).items() if name in names}
        state = next((one for one in known if one.deployment == self.record.name), None)
        return LiveRun(policy, state, [one for _, one in served], batches)

    async def _ask(self, wanted: Wanted, begin: float) -> tuple[str, Served]:
        await asyncio.sleep(max(0.0, begin + wanted.at - time.monotonic()))
        options: QueryOptions = {"max_output_tokens": wanted.max_output_tokens}
        if wanted.slo_seconds:
            options["slo_seconds"] = wanted.slo_seconds
        sent = time.time()
        try:
            query = await self._client.submit(wanted.prompt, **options)
        except RefusedError:
            profile = await self._client.profile(wanted.prompt, max_output_tokens=wanted.max_output_tokens)
            predicted = LengthDistribution.from_proto(profile.output_length)
            return "", Served(wanted, sent, predicted, profile.prompt_tokens, refused=True)
        outcome = await self._client.outcome(query)
        if outcome.state not in (QUERY_STATE_COMPLETED, QUERY_STATE_REJECTED):
            raise RuntimeError(f"{query.name}: {outcome.failure.message or outcome.state}")
        return query.name, Served(
            wanted,
            sent,
            LengthDistribution.from_proto(query.profile.output_length),
            query.profile.prompt_tokens,
            refused=outcome.state == QUERY_STATE_REJECTED,
            **_seconds(outcome.timing),
            output_tokens=outcome.output_tokens,
            batch_id=outcome.batch_id,
        )

    async def _costs(self) -> Mapping[str, StepAggregates]:
        """By the query on whose observation it is."""
        found = await self._redis.xrange(ModelKeys(self.record.model).observations)
        observations = (Observation.FromString(fields[b"o"]) for _, fields in found)
        return {one.name: one.step_aggregates for one in observations if one.HasField("step_aggregates")}


def _seconds(timing: Timing) -> dict[str, float]:
    names = {"accepted": "accept", "dispatched": "dispatch", "first_token": "first_token", "finished": "finish"}
    return {ours: getattr(timing, f"{theirs}_time").ToNanoseconds() / 1e9 for ours, theirs in names.items()}


@contextlib.asynccontextmanager
async def asking(info: StackInfo) -> AsyncIterator[Stack]:
    """Ask a running stack while the block runs."""
    endpoints = Endpoints(*(info.parts[name].endpoint for name in ("profiler", "scheduler", "deployer")))
    redis = connect(f"redis://{info.parts['redis'].endpoint}")
    try:
        async with AsyncClient(endpoints, model=info.model, tenant="validation") as client:
            (deployment,) = await client.deployments()
            yield Stack(client, redis, deployment.record)
    finally:
        await redis.aclose()
