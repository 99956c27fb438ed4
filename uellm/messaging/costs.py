"""What was learnt of the cost of deployments: written by the owner of a model's queue, followed by the profiler."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError

from uellm.cost.model import CostModel
from uellm.messaging.connection import RedisClient
from uellm.messaging.following import refreshing
from uellm.messaging.keys import ModelKeys
from uellm.messaging.queries import FencedError
from uellm.messaging.scripts import Scripts
from uellm.v1.stream_pb2 import CostModelState, DeploymentRecord

KEPT_MS = 30 * 24 * 3_600_000
"""How long what was learnt outlives the last batch."""
MOST_DEPLOYMENTS = 256
"""Of one model, in the store."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CostStore:
    """The owner's side."""

    redis: RedisClient
    scripts: Scripts = field(init=False)

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.redis)

    async def publish(self, queue: str, epoch: int, states: Sequence[CostModelState]) -> None:
        """Write the states of some deployments.

        Raises:
            FencedError: another replica owns the queue.
        """
        keys = ModelKeys.of(queue)
        arguments: list[str | bytes | int] = [epoch, KEPT_MS, MOST_DEPLOYMENTS]
        for state in states:
            arguments += [state.deployment, state.SerializeToString()]
        if not await self.scripts.publish_costs(keys=[keys.owner_epoch, keys.cost], args=arguments):
            raise FencedError

    async def read(self, model: str) -> list[CostModelState]:
        """The states of all deployments of a model, of whatever plan; what can't be read is left out."""
        return _decode(model, await self.redis.hgetall(ModelKeys(model).cost))


class CostDirectory:
    """The followers' side: models in memory, refreshed in the background; asking for one never waits."""

    def __init__(self, redis: RedisClient, models: Callable[[], Iterable[str]], interval_seconds: float = 1.0) -> None:
        """Follow the logical models that `models` names."""
        self._redis = redis
        self._models = models
        self._interval = interval_seconds
        self._raw: dict[str, dict[bytes, bytes]] = {}
        self._states: dict[str, CostModelState] = {}
        self._known: dict[str, tuple[DeploymentRecord, CostModelState | None, CostModel]] = {}

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[CostDirectory]:
        """Follow while the block runs. A first look is taken before it begins, if Redis answers."""
        async with refreshing("cost models", self.refresh, self._interval):
            yield self

    async def refresh(self) -> None:
        """Read the states now."""
        models = sorted(self._models())
        async with self._redis.pipeline(transaction=False) as pipeline:
            for model in models:
                pipeline.hgetall(ModelKeys(model).cost)
            found = dict(zip(models, await pipeline.execute(), strict=True))
        if found != self._raw:
            self._raw = found
            self._states = {state.deployment: state for model, raw in found.items() for state in _decode(model, raw)}
            self._known = {name: known for name, known in self._known.items() if known[1] == self._states.get(name)}

    def of(self, deployment: DeploymentRecord) -> CostModel:
        """What is known of a deployment's cost: what was learnt of its plan, or its prior."""
        known = self._known.get(deployment.name)
        if known is None or known[0] is not deployment:
            state = self._states.get(deployment.name)
            known = deployment, state, CostModel.of(deployment, state)
            self._known[deployment.name] = known
        return known[2]


def _decode(model: str, raw: dict[bytes, bytes]) -> list[CostModelState]:
    states = []
    for name, value in raw.items():
        try:
            states.append(CostModelState.FromString(value))
        except DecodeError:
            log.warning("cost model can't be read", model=model, deployment=name.decode(errors="replace"))
    return states
