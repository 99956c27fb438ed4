"""The Lua scripts, loaded once. Only commands of Redis 6.2; each touches the keys of one model only."""

from __future__ import annotations

from importlib.resources import files

from redis.commands.core import AsyncScript

from uellm.messaging.connection import RedisClient


class Scripts:
    """The scripts, bound to a client. Called with lists of keys and arguments."""

    def __init__(self, redis: RedisClient) -> None:
        self.submit = _load(redis, "submit")
        self.dispatch = _load(redis, "dispatch")
        self.append = _load(redis, "append")
        self.finish = _load(redis, "finish")
        self.cancel = _load(redis, "cancel")
        self.acquire = _load(redis, "acquire")
        self.renew = _load(redis, "renew")
        self.calibrate = _load(redis, "calibrate")
        self.publish_costs = _load(redis, "publish_costs")
        self.record_decision = _load(redis, "record_decision")


def _load(redis: RedisClient, name: str) -> AsyncScript:
    script: AsyncScript = redis.register_script((files(__package__) / f"{name}.lua").read_text("utf-8"))
    return script
