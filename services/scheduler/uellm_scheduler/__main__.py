"""Composition root: `python -m uellm_scheduler`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from redis.exceptions import RedisError

from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.events import EventHub
from uellm.messaging.lease import LeaseKeeper
from uellm.messaging.queries import QueryStore
from uellm.rpc.logging import configure_logging
from uellm.rpc.server import run, serve
from uellm.rpc.settings import load
from uellm.v1.scheduler_pb2 import DESCRIPTOR
from uellm.v1.scheduler_pb2_grpc import add_SchedulerServiceServicer_to_server

from .adapters.triton import TritonEngines
from .app.decisions import Decisions
from .app.letters import Letters
from .app.limits import CoreLimits
from .app.metrics import Metrics
from .app.owner import Surroundings
from .app.ownership import Ownership
from .app.policy_choice import PolicyChoice
from .app.queries import Queries
from .app.tenants import Tenants
from .config import SchedulerSettings
from .policies import POLICIES
from .server import SchedulerServicer


async def main(settings: SchedulerSettings) -> None:
    """Build the scheduler and serve until told to stop."""
    redis = connect(settings.redis_url.get_secret_value())
    clock = RedisClock(redis)
    engines = TritonEngines()
    store = QueryStore(redis, retention_ms=round(settings.retention_seconds * 1000))
    directory = DeploymentDirectory(redis, clock)
    hub = EventHub(redis)
    leases = LeaseKeeper(redis, settings.replica, round(settings.lease_seconds * 1000))
    around = Surroundings(
        redis=redis,
        store=store,
        clock=clock,
        directory=directory,
        engines=engines,
        replica=settings.replica,
        policy=POLICIES[settings.policy],
        policies=POLICIES,
        limits=CoreLimits(
            max_attempts=settings.max_attempts, engine_stall_ms=round(settings.engine_stall_seconds * 1000)
        ),
        metrics=Metrics(),
    )
    ownership = Ownership(leases, around)
    servicer = SchedulerServicer(
        Queries(redis, store, hub, clock, leases, directory, ownership),
        PolicyChoice(redis, POLICIES),
        Tenants(redis, store, hub),
        Letters(redis, store, clock, directory, settings.queue_limit),
        Decisions(redis, store, clock, ownership),
    )

    @asynccontextmanager
    async def lifecycle() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(redis.aclose)
            stack.push_async_callback(engines.close)
            await stack.enter_async_context(clock.following())
            await stack.enter_async_context(directory.following())
            await stack.enter_async_context(hub.running())
            await stack.enter_async_context(ownership.running())
            yield

    await serve(
        settings,
        [(add_SchedulerServiceServicer_to_server, servicer)],
        [DESCRIPTOR.services_by_name["SchedulerService"].full_name],
        lifecycle=lifecycle(),
        ready=lambda: _answers(redis),
    )


async def _answers(redis: RedisClient) -> bool:
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False


if __name__ == "__main__":
    chosen = load(SchedulerSettings, sys.argv[1:], prog="python -m uellm_scheduler")
    configure_logging("scheduler", chosen.log_level, chosen.log_format)
    sys.exit(run(main(chosen)))
