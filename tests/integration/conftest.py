"""A real Triton with the static engine and a tiny model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stack import TRITON_MODEL
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import load, start_triton, write_static_engine
from uellm.local.triton import EmbeddedTriton


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
