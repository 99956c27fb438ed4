"""Use case: restart Triton, which frees for certain what its models leak or never let go of."""

from __future__ import annotations

import asyncio

import structlog

from uellm.rpc.errors import FailedPreconditionError, UnavailableError
from uellm_deployer.app.book import Book
from uellm_deployer.app.ports import Clock, ModelServer, Publisher, TritonHost
from uellm_deployer.app.removal import Removal
from uellm_deployer.domain.deployment import Deployment, State

log = structlog.get_logger(__name__)

BACK_SECONDS = 120.0
"""Within this Triton must answer again; models are loaded afterwards."""
POLL_SECONDS = 0.2


class RestartTriton:
    """Drains what serves and restarts Triton. What served is the keeper's to load again."""

    def __init__(
        self,
        book: Book,
        removal: Removal,
        server: ModelServer,
        publisher: Publisher,
        host: TritonHost,
        clock: Clock,
    ) -> None:
        self._book = book
        self._removal = removal
        self._server = server
        self._publisher = publisher
        self._host = host
        self._clock = clock

    async def check(self) -> None:
        """Raise what would keep it from beginning: FailedPreconditionError, UnavailableError."""
        await self._host.check()

    def served(self) -> list[Deployment]:
        """Those that drain before, and are loaded again after it."""
        return [one for one in self._book.deployments.values() if one.state is State.READY]

    async def idle(self) -> bool:
        """Whether nothing else would be interrupted: no deployment serves, and Triton has no model of others."""
        return not self.served() and not self._removal.aside and not await self._server.ready_models()

    async def restart(self) -> None:
        """Returns when Triton answers again, without its models. The caller holds `Operations.changing`.

        Raises as `check`, before anything has changed; UnavailableError if Triton does not come back.
        """
        await self.check()
        serving = [one for one in self.served() if one.name not in self._removal.aside]
        names = {one.name for one in serving}
        self._removal.aside |= names  # else the keeper publishes them as ready
        try:
            await asyncio.gather(*map(self._drain, serving))
            log.info("restarting Triton", deployments=sorted(names))
            await self._host.restart()
            for one in serving:  # nothing can be dispatched any more: queries may come again, and wait
                await self._publisher.publish(one)
            await self._come_back()
        finally:
            self._removal.aside -= names

    async def _drain(self, deployment: Deployment) -> None:
        """A Triton that does not answer has nothing in flight that could end well."""
        try:
            await self._removal.drain(deployment)
        except (UnavailableError, FailedPreconditionError) as error:
            log.warning("not drained before the restart", deployment=deployment.name, error=error.message)

    async def _come_back(self) -> None:
        end = self._clock.monotonic() + BACK_SECONDS
        while True:
            try:
                await self._server.ready_models()
            except UnavailableError:
                if self._clock.monotonic() >= end:
                    raise
                await self._clock.sleep(POLL_SECONDS)
            else:
                return
