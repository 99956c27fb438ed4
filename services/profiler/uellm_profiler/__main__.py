"""The profiler as a process: `python -m uellm_profiler --help`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.queries import QueryStore
from uellm.rpc.logging import configure_logging
from uellm.rpc.server import run, serve
from uellm.rpc.settings import load
from uellm.v1.profiler_pb2_grpc import add_ProfilerServiceServicer_to_server
from uellm_profiler.adapters.backlogs import RedisBacklogs
from uellm_profiler.adapters.metrics import MeasuredPredictor, MeasuredTokenizer
from uellm_profiler.adapters.tokenizer import TokenizerPool
from uellm_profiler.app.profile import Profiler
from uellm_profiler.app.submit import Submitter
from uellm_profiler.config import ProfilerSettings
from uellm_profiler.domain.prior import StatisticalPrior
from uellm_profiler.server import SERVICE, ProfilerServicer


async def serve_profiler(
    settings: ProfilerSettings,
    *,
    on_started: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until a signal or `stop`; `on_started` is called with the port."""
    redis = connect(settings.redis_url.get_secret_value())
    clock = RedisClock(redis)
    directory = DeploymentDirectory(redis, clock)
    tokenizers = TokenizerPool(settings.tokenizer_threads)
    profiler = Profiler(directory, MeasuredTokenizer(tokenizers), MeasuredPredictor(StatisticalPrior()))
    submitter = Submitter(profiler, QueryStore(redis), RedisBacklogs(redis), clock, settings.queue_limit)

    async def ready() -> bool:
        await clock.synchronise()
        return True

    await serve(
        settings,
        [(add_ProfilerServiceServicer_to_server, ProfilerServicer(profiler, submitter, directory.models))],
        [SERVICE],
        lifecycle=_lifecycle(redis, directory, tokenizers),
        ready=ready,
        on_started=on_started,
        stop=stop,
    )


@contextlib.asynccontextmanager
async def _lifecycle(
    redis: RedisClient, directory: DeploymentDirectory, tokenizers: TokenizerPool
) -> AsyncIterator[None]:
    try:
        async with directory.following():
            yield
    finally:
        tokenizers.close()
        await redis.aclose()


def main() -> None:
    """Read the configuration and serve."""
    settings = load(ProfilerSettings, sys.argv[1:], prog="uellm_profiler")
    configure_logging("profiler", settings.log_level, settings.log_format)
    sys.exit(run(serve_profiler(settings)))


if __name__ == "__main__":
    main()
