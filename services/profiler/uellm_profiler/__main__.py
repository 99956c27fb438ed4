"""The profiler as a process: `python -m uellm_profiler --help`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable

from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.costs import CostDirectory
from uellm.messaging.deployments import DeploymentDirectory
from uellm.messaging.queries import QueryStore
from uellm.rpc.logging import configure_logging
from uellm.rpc.server import run, serve
from uellm.rpc.settings import load
from uellm.v1.profiler_pb2_grpc import add_ProfilerServiceServicer_to_server
from uellm_profiler.adapters.backlogs import RedisBacklogs
from uellm_profiler.adapters.loader import ReadAdapter, neural_reader
from uellm_profiler.adapters.metrics import MeasuredPredictor, MeasuredTokenizer
from uellm_profiler.adapters.tokenizer import TokenizerPool
from uellm_profiler.app.ports import PredictorError
from uellm_profiler.app.profile import Profiler
from uellm_profiler.app.submit import Submitter
from uellm_profiler.composition import Calibrating, Prediction, compose_calibration, compose_prediction
from uellm_profiler.config import ProfilerSettings
from uellm_profiler.domain.prior import StatisticalPrior
from uellm_profiler.server import SERVICE, ProfilerServicer


async def serve_profiler(
    settings: ProfilerSettings,
    *,
    on_started: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
    read_adapter: ReadAdapter | None = None,
) -> None:
    """Serve until a signal or `stop`; `on_started` is called with the port.

    Raises PredictorError if the predictor can't be used. `read_adapter` reads others than `uellm_profiler.neural`.
    """
    redis = connect(settings.redis_url.get_secret_value())
    clock = RedisClock(redis)
    directory = DeploymentDirectory(redis, clock)
    costs = CostDirectory(redis, directory.models)
    tokenizers = TokenizerPool(settings.tokenizer_threads)
    prediction = await compose_prediction(settings, redis, read_adapter or neural_reader(settings.predictor_threads))
    calibrating = compose_calibration(settings, redis, directory.models)
    profiler = Profiler(
        directory,
        MeasuredTokenizer(tokenizers),
        MeasuredPredictor(prediction.active),
        MeasuredPredictor(StatisticalPrior()),
        cost_of=costs.of,
        calibration_of=calibrating.directory.get,
    )
    submitter = Submitter(profiler, QueryStore(redis), RedisBacklogs(redis), clock, settings.queue_limit)
    servicer = ProfilerServicer(
        profiler,
        submitter,
        prediction.predictors,
        settings.stream_in_flight,
        directory.models,
        calibrating.directory.describe,
    )

    async def ready() -> bool:
        await clock.synchronise()
        return prediction.predictors.settled

    await serve(
        settings,
        [(add_ProfilerServiceServicer_to_server, servicer)],
        [SERVICE],
        lifecycle=_lifecycle(redis, directory, costs, tokenizers, prediction, calibrating),
        ready=ready,
        on_started=on_started,
        stop=stop,
    )


@contextlib.asynccontextmanager
async def _lifecycle(
    redis: RedisClient,
    directory: DeploymentDirectory,
    costs: CostDirectory,
    tokenizers: TokenizerPool,
    prediction: Prediction,
    calibrating: Calibrating,
) -> AsyncIterator[None]:
    try:
        async with (
            directory.following(),
            costs.following(),
            prediction.predictors.following(),
            calibrating.running(),
        ):
            yield
    finally:
        prediction.batcher.close()
        tokenizers.close()
        await redis.aclose()


def main() -> None:
    """Read the configuration and serve."""
    settings = load(ProfilerSettings, sys.argv[1:], prog="uellm_profiler")
    configure_logging("profiler", settings.log_level, settings.log_format)
    try:
        sys.exit(run(serve_profiler(settings)))
    except PredictorError as error:
        sys.stderr.write(f"the predictor can't be loaded: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
