"""Which policy a model's queues are served by, changed while they are served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from uellm.messaging.connection import RedisClient
from uellm.messaging.deployments import queues_of
from uellm.messaging.keys import MODELS, ModelKeys
from uellm.rpc.errors import FieldViolation, InvalidArgumentError, NotFoundError, UnavailableError
from uellm.rpc.validation import Violations
from uellm.v1.stream_pb2 import Backlog

from ..domain.policy import Policy

IN_FORCE_SECONDS = 5.0
POLL_SECONDS = 0.05


class PolicyChoice:
    """Kept in Redis: whoever owns a queue of the model, now or later, follows it."""

    def __init__(self, redis: RedisClient, policies: Mapping[str, Policy]) -> None:
        self._redis = redis
        self._policies = policies

    async def choose(self, model: str, policy: str) -> str:
        """Have a model's queue served by another policy; returns the name of the one before, once the new one decides.

        Raises InvalidArgumentError, NotFoundError, UnavailableError where nobody owns the queue: the choice is kept.
        """
        await self._check(model, policy)
        queues = await queues_of(self._redis, model)
        before = (await self._in_force(queues))[0]
        await self._redis.set(ModelKeys(model).policy, policy)
        try:
            async with asyncio.timeout(IN_FORCE_SECONDS):
                while set(await self._in_force(queues)) != {policy}:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            message = f"{policy} is chosen, but no scheduler serves the queue of {model} right now"
            raise UnavailableError(message) from None
        return before

    async def _check(self, model: str, policy: str) -> None:
        violations = Violations()
        violations.model_identifier("model", model)
        violations.raise_if_any()
        if policy not in self._policies:
            known = ", ".join(sorted(self._policies))
            raise InvalidArgumentError([FieldViolation("policy", f"must be one of {known}")])
        if not await self._redis.sismember(MODELS, model):
            raise NotFoundError("model", model, f"model {model!r} was never deployed", reason="MODEL_NOT_DEPLOYED")

    async def _in_force(self, queues: Sequence[str]) -> list[str]:
        found = await self._redis.mget([ModelKeys.of(queue).backlog for queue in queues])
        return [Backlog.FromString(backlog or b"").policy for backlog in found]
