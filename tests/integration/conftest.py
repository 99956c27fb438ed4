"""A real Triton with the static engine and a tiny model; what a profiler needs to know of that model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.profiler import publish_tiny
from tests.support.stack import TRITON_MODEL
from tests.support.tiny_model import make_tiny_model, make_tokenizer
from tests.support.triton import load, start_triton, write_static_engine
from uellm.local.triton import EmbeddedTriton
from uellm.messaging.connection import RedisClient
from uellm.v1.stream_pb2 import DeploymentRecord


@pytest.fixture(scope="session")
def tiny_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTriton]:
    """Triton with the tiny model loaded as `tiny--0`."""
    folder = tmp_path_factory.mktemp("tiny-triton")
    weights = make_tiny_model(folder / "weights")
    (folder / "models").mkdir()
    server = start_triton(folder)
    try:
        write_static_engine(folder / "models", TRITON_MODEL, weights)
        load(server, TRITON_MODEL)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
async def published(redis: RedisClient, tokenizer_folder: Path) -> DeploymentRecord:
    """The tiny model's deployment, which is only said to be there."""
    return await publish_tiny(redis, tokenizer_folder)
