"""Fixtures that several kinds of tests share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import RedisClient, connect

# Elsewhere each run tries other examples; a build tries the same ones again, and does not time them.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """The embedded Redis (6.2)."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("redis"), free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture
async def redis(redis_server: EmbeddedRedis) -> AsyncIterator[RedisClient]:
    """A client of the embedded Redis, empty at the start of each test."""
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """An empty folder."""
    return tmp_path
