"""Faults of every process in the middle of 300 queries: real Redis, real Triton, real services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.faults import FaultyStack, faulty_stack, run_through
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    folder = tmp_path_factory.mktemp("faults")
    with faulty_stack(folder, EmbeddedRedis(folder / "redis", free_port())) as started:
        yield started


@pytest.mark.parametrize(
    "fault", ["kill_scheduler", "pause_scheduler", "kill_triton", "kill_stub", "kill_redis", "pause_redis"]
)
async def test_every_query_has_one_outcome_and_its_whole_answer(stack: FaultyStack, fault: str) -> None:
    running, outcomes = await run_through(stack, getattr(stack, fault), prefix=fault.replace("_", "-"))
    assert len(outcomes) == 300
    assert any(outcome.dispatch_count > 1 for outcome in outcomes) or "redis" in fault, "nothing was running"
    assert "Traceback" not in stack.logs()
