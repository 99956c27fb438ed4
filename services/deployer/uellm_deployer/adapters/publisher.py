"""What the other services learn of deployments, through Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from redis.exceptions import RedisError

from uellm.messaging.deployments import DeploymentPublisher, same_record
from uellm.messaging.keys import queue_name
from uellm.rpc.errors import UnavailableError
from uellm_deployer.domain.deployment import Deployment
from uellm_deployer.encoding import record_message

T = TypeVar("T")


class RedisPublisher:
    """Writes the records of this deployer's Triton."""

    def __init__(self, publisher: DeploymentPublisher, triton_endpoint: str) -> None:
        self._publisher = publisher
        self._endpoint = triton_endpoint

    async def publish(self, deployment: Deployment) -> None:
        """Write or renew the deployment's record."""
        await _reached(self._publisher.publish(record_message(deployment, self._endpoint)))

    async def withdraw(self, name: str) -> None:
        """Remove the record of a deployment."""
        await _reached(self._publisher.withdraw(name))

    async def differing(self, wanted: Sequence[Deployment]) -> Mapping[str, str]:
        """By resource name, in words: what is published of this Triton that is not wanted, or otherwise."""
        found = await _reached(self._publisher.records())
        own = {record.name: record for record in found if record.triton_endpoint == self._endpoint}
        messages = {one.name: record_message(one, self._endpoint) for one in wanted}
        differing = {name: "published, though it does not serve" for name in own if name not in messages}
        for name, message in messages.items():
            if name not in own:
                differing[name] = "not published"
            elif not same_record(own[name], message):
                differing[name] = "published otherwise"
        return dict(sorted(differing.items()))

    async def drained(self, deployment: Deployment) -> bool:
        """Whether the scheduler knows that it is DRAINING, and has nothing in flight on it."""
        queue = queue_name(*deployment.plan.spec.queue)
        return await _reached(self._publisher.drained(queue, deployment.name))


async def _reached(call: Awaitable[T]) -> T:
    try:
        return await call
    except (RedisError, OSError) as error:
        raise UnavailableError(f"Redis cannot be reached: {error}", reason="REDIS_UNAVAILABLE") from None
