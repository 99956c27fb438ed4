"""The parts of prediction and of calibration, put together as the settings say."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from uellm.messaging.connection import RedisClient
from uellm.messaging.lease import LeaseKeeper, calibration_lease
from uellm_profiler.adapters.calibration import CalibrationDirectory, RedisCalibrationStore
from uellm_profiler.adapters.calibration_metrics import CalibrationMetrics
from uellm_profiler.adapters.installations import RedisInstallations
from uellm_profiler.adapters.loader import AdapterLoader, ReadAdapter, shipped_adapter
from uellm_profiler.adapters.metrics import show_predictor
from uellm_profiler.adapters.micro_batch import MicroBatcher
from uellm_profiler.app.calibration import Calibrator
from uellm_profiler.app.predictors import ActivePredictor, Predictors
from uellm_profiler.config import ProfilerSettings
from uellm_profiler.domain.micro_batch import BatchLimits
from uellm_profiler.domain.prior import StatisticalPrior


@dataclass(frozen=True, slots=True)
class Prediction:
    """What predicts."""

    batcher: MicroBatcher
    active: ActivePredictor
    predictors: Predictors


async def compose_prediction(settings: ProfilerSettings, redis: RedisClient, read: ReadAdapter) -> Prediction:
    """Load the predictor that the settings name; raises PredictorError if it can't be used."""
    batcher = MicroBatcher(
        BatchLimits(
            prompts=settings.predictor_batch_prompts,
            tokens=settings.predictor_batch_tokens,
            interactive_waiting=settings.predictor_queue_limit,
            bulk_waiting=settings.predictor_bulk_queue_limit,
        )
    )
    adapter = settings.predictor_adapter
    if adapter is None and settings.predictor != StatisticalPrior.kind:
        adapter = shipped_adapter(settings.predictor)
    loader = AdapterLoader(batcher, read, settings.predictor, adapter, settings.predictor_base)
    active = ActivePredictor(await loader.load(""))
    return Prediction(batcher, active, Predictors(active, loader, RedisInstallations(redis), show_predictor))


@dataclass(frozen=True, slots=True)
class Calibrating:
    """What calibrates."""

    calibrator: Calibrator
    directory: CalibrationDirectory

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Learn, and follow what is learnt, while the block runs."""
        async with self.directory.following(), self.calibrator.running():
            yield


def compose_calibration(
    settings: ProfilerSettings, redis: RedisClient, models: Callable[[], Iterable[str]]
) -> Calibrating:
    """Calibrate for the models that are deployed."""
    lease_ms = round(settings.calibration_lease_seconds * 1000)
    leases = LeaseKeeper(redis, settings.replica, lease_ms, calibration_lease)
    return Calibrating(
        Calibrator(RedisCalibrationStore(redis), leases, models),
        CalibrationDirectory(redis, models, CalibrationMetrics().show),
    )
