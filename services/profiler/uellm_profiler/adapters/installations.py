"""Which predictor is installed, in Redis: every replica reads it, and a restart finds it."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from redis.exceptions import WatchError

from uellm.messaging.connection import RedisClient
from uellm.messaging.keys import PREDICTOR
from uellm.rpc.errors import UnavailableError
from uellm.v1.stream_pb2 import PredictorInstallation


@dataclass(frozen=True, slots=True)
class RedisInstallations:
    """See `uellm_profiler.app.ports.Installations`."""

    redis: RedisClient

    async def read(self) -> PredictorInstallation:
        """See `Installations`."""
        return _decode(await self.redis.get(PREDICTOR))

    async def replace(self, generation: int, installation: PredictorInstallation) -> bool:
        """See `Installations`."""
        async with self.redis.pipeline(transaction=True) as pipeline:
            await pipeline.watch(PREDICTOR)
            if _decode(await pipeline.get(PREDICTOR)).generation != generation:
                return False
            pipeline.multi()
            pipeline.set(PREDICTOR, installation.SerializeToString())
            try:
                await pipeline.execute()
            except WatchError:
                return False
        return True


def _decode(value: bytes | None) -> PredictorInstallation:
    try:
        return PredictorInstallation.FromString(value or b"")
    except DecodeError as error:
        message = f"what Redis holds under {PREDICTOR} can't be read: delete that key, and install the predictor again"
        raise UnavailableError(message, reason="INSTALLATION_UNREADABLE") from error
