"""The stack of `uellm up`, with the default model, once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.local_stack import LocalUp
from uellm.client import Client


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalUp]:
    """`uellm up` on free ports."""
    up = LocalUp(tmp_path_factory.mktemp("stack"))
    up.start()
    try:
        yield up
    finally:
        up.end()


@pytest.fixture
def client(stack: LocalUp) -> Iterator[Client]:
    """A client of the stack."""
    with Client(stack.endpoints()) as client:
        yield client
