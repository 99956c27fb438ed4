"""SIGKILL of the deployer at every step of its operations: real processes, real Triton, real Redis, a light engine."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.support.killed import KilledDeployer
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import start_triton
from uellm.local.redis import EmbeddedRedis

STRIDE = 1 if os.environ.get("UELLM_KILLS") == "all" else 7
"""Every so many points; set UELLM_KILLS=all for each of them."""


@pytest.fixture(scope="module")
def deployer(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Iterator[KilledDeployer]:
    folder = tmp_path_factory.mktemp("killed")
    weights = make_tiny_model(tmp_path_factory.mktemp("weights") / "tiny")
    triton = start_triton(folder)
    try:
        with KilledDeployer(folder, triton, redis_server, weights) as deployer:
            deployer.finish(deployer.create())
            deployer.finish(deployer.create())  # so that there is something to return to
            yield deployer
    finally:
        triton.stop()


@pytest.mark.parametrize("kind", ["create", "recreate", "roll_back", "delete"])
def test_killed_at_any_step(deployer: KilledDeployer, kind: str) -> None:
    """After a restart the operation has ended, made or undone as a whole, and nothing is left over."""
    for point in itertools.count(1, STRIDE):
        if not deployer.serving():
            deployer.finish(deployer.create())
        [old] = deployer.serving()
        effect, begun = deployer.killed_in(getattr(deployer, kind), point)
        if not effect:
            assert point > STRIDE, "nothing was killed"
            break
        deployer.start()
        deployer.check()
        serving = set(deployer.serving())
        if begun is None:
            assert serving == {old}, effect
            continue
        ended = deployer.book().operations[begun.name]
        assert ended.failure is None or ended.failure.reason == "RESTARTED", effect
        made = serving == ({begun.deployment} if kind != "delete" else set())
        assert made == (ended.failure is None), effect
        assert made or serving == {old}, effect
