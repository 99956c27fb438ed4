"""Calibrations in Redis: the store of the one that learns, and the copy in memory that every replica follows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError

from uellm.messaging.clock import entry_time_ms
from uellm.messaging.connection import RedisClient
from uellm.messaging.following import refreshing
from uellm.messaging.keys import ModelKeys
from uellm.messaging.scripts import Scripts
from uellm.v1.profiler_pb2 import ModelCalibration
from uellm_profiler.adapters.calibration_codec import decode_observation, decode_state, describe, encode_state
from uellm_profiler.app.calibration import LostLeaseError, Page
from uellm_profiler.domain.calibration import CalibrationState
from uellm_profiler.domain.recalibration import Calibration

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RedisCalibrationStore:
    """See `uellm_profiler.app.calibration.CalibrationStore`."""

    redis: RedisClient
    scripts: Scripts = field(init=False)

    def __post_init__(self) -> None:
        self.scripts = Scripts(self.redis)

    async def load(self, model: str) -> CalibrationState:
        """See `CalibrationStore`. A state that can't be read is left behind: learning begins after its last entry."""
        state, last = await self.redis.hmget(ModelKeys(model).calibration, ["state", "last"])
        if state is None:
            return CalibrationState()
        try:
            return decode_state(state)
        except (DecodeError, ValueError) as error:
            log.warning("calibration can't be read; it begins anew", model=model, error=str(error))
            return CalibrationState(last_entry_id=(last or b"").decode())

    async def observations(self, model: str, after: str, count: int) -> Page:
        """See `CalibrationStore`."""
        # The entry itself is read, too: if it is not there any more, others behind it may be gone.
        found = await self.redis.xrange(ModelKeys(model).observations, min=after or "-", count=count + 1)
        present = bool(found) and found[0][0].decode() == after
        entries = found[1:] if present else found[:count]
        return Page(
            [(entry_id.decode(), decode_observation(entry_id.decode(), fields)) for entry_id, fields in entries],
            gap=bool(after) and not present,
        )

    async def save(self, model: str, epoch: int, before: CalibrationState, after: CalibrationState) -> bool:
        """See `CalibrationStore`."""
        keys = ModelKeys(model)
        written = await self.scripts.calibrate(
            keys=[keys.calibrator_epoch, keys.calibration],
            args=[epoch, before.last_entry_id, after.last_entry_id, encode_state(after).SerializeToString()],
        )
        if written is None:
            raise LostLeaseError
        return bool(written)


class CalibrationDirectory:
    """The calibrations of all models in memory, refreshed in the background; asking for one never waits."""

    def __init__(
        self,
        redis: RedisClient,
        models: Callable[[], Iterable[str]],
        observe: Callable[[CalibrationDirectory], None],
        interval_seconds: float = 0.5,
    ) -> None:
        """`observe` is called after each refresh."""
        self._redis = redis
        self._models = models
        self._observe = observe
        self._interval = interval_seconds
        self._calibrations: dict[tuple[str, str], Calibration] = {}
        self._lags: dict[str, float] = {}
        self.states: dict[str, CalibrationState] = {}
        """By model."""

    def get(self, model: str, predictor_version: str) -> Calibration | None:
        """What corrects a predictor's predictions for a model; None if nothing is known yet."""
        return self._calibrations.get((model, predictor_version))

    def lag_seconds(self, model: str) -> float:
        """How far the calibration is behind the observations: from the last one in it to the last one there is."""
        return self._lags.get(model, 0.0)

    def describe(self, model: str, predictor_version: str) -> ModelCalibration:
        """How well a predictor's calibration has done lately."""
        state = self.states.get(model)
        known = None if state is None else state.of(predictor_version)
        return describe(model, known, self.lag_seconds(model))

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[CalibrationDirectory]:
        """Follow while the block runs. The first copy is taken before it begins, if Redis answers."""
        async with refreshing("calibrations", self.refresh, self._interval):
            yield self

    async def refresh(self) -> None:
        """Read what is there now."""
        models = sorted(self._models())
        async with self._redis.pipeline(transaction=False) as pipeline:
            for model in models:
                pipeline.hget(ModelKeys(model).calibration, "last")
                pipeline.xrevrange(ModelKeys(model).observations, count=1)
            found = await pipeline.execute()
        for model, last, newest in zip(models, found[::2], found[1::2], strict=True):
            known = self.states.get(model)
            if last is not None and (known is None or known.last_entry_id != last.decode()):
                await self._read(model)
            elif last is None:
                self.states.pop(model, None)
            self._measure_lag(model, newest[0][0].decode() if newest else "")
        self._forget_all_but(set(models))
        self._observe(self)

    async def _read(self, model: str) -> None:
        value = await self._redis.hget(ModelKeys(model).calibration, "state")
        try:
            state = decode_state(value or b"")
        except (DecodeError, ValueError) as error:
            log.warning("calibration can't be read", model=model, error=str(error))
            return
        self.states[model] = state
        for known in state.predictors:
            key = (model, known.predictor_version)
            if key not in self._calibrations or self._calibrations[key].version != known.version:
                self._calibrations[key] = known.calibration()

    def _measure_lag(self, model: str, newest: str) -> None:
        state = self.states.get(model)
        applied = state.last_entry_id if state else ""
        behind = entry_time_ms(newest) - entry_time_ms(applied) if newest and applied else 0
        self._lags[model] = max(0, behind) / 1000

    def _forget_all_but(self, models: set[str]) -> None:
        self.states = {model: state for model, state in self.states.items() if model in models}
        known = {(model, one.predictor_version) for model, state in self.states.items() for one in state.predictors}
        self._calibrations = {key: value for key, value in self._calibrations.items() if key in known}
        self._lags = {model: lag for model, lag in self._lags.items() if model in models}
