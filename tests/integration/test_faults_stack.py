"""Faults of every process in the middle of 300 queries: real Redis, real Triton, real services."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.faults import PARENT, FaultyStack, faulty_stack, find_redis_7
from tests.support.stack import until
from tests.support.traffic import Traffic, run_through, traffic
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import SHARED_MEMORY
from uellm.rpc.errors import UnavailableError
from uellm.rpc.status import from_rpc_error
from uellm.v1 import profiler_pb2, query_pb2
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    folder = tmp_path_factory.mktemp("faults")
    with faulty_stack(folder, EmbeddedRedis(folder / "redis", free_port())) as started:
        yield started
    port = started.triton.options.grpc_port
    assert not list(SHARED_MEMORY.glob(f"uellm_{os.getpid()}_{port}_*")), "a Triton that was killed left memory behind"


@pytest.mark.parametrize(
    "fault", ["kill_scheduler", "pause_scheduler", "kill_triton", "kill_stub", "kill_redis", "pause_redis"]
)
async def test_every_query_has_one_outcome_and_its_whole_answer(stack: FaultyStack, fault: str) -> None:
    _, outcomes = await run_through(stack, getattr(stack, fault), prefix=fault.replace("_", "-"))
    assert len(outcomes) == 300
    assert any(outcome.dispatch_count > 1 for outcome in outcomes) or "redis" in fault, "nothing was running"
    assert "Traceback" not in stack.logs()


async def test_clients_are_told_that_redis_is_away_and_go_on_when_it_is_back(stack: FaultyStack) -> None:
    told: list[Any] = []

    async def for_six_seconds() -> None:
        end = asyncio.get_running_loop().time() + 6
        while asyncio.get_running_loop().time() < end:
            told.extend(await asyncio.gather(*_calls(stack)))

    running, _ = await run_through(stack, lambda: stack.kill_redis(for_six_seconds), prefix="away")
    assert len(told) >= 9
    for error in told:
        assert isinstance(error, UnavailableError), error
        assert (error.reason, error.retry_after_seconds > 0) == ("REDIS_UNAVAILABLE", True)
    assert set(running.codes) <= {grpc.StatusCode.UNAVAILABLE}
    assert {code for seen in running.watched.values() for code in seen.codes} <= {grpc.StatusCode.UNAVAILABLE}


async def test_a_watcher_that_reads_nothing_holds_nobody_back(stack: FaultyStack) -> None:
    async with traffic(stack) as running, _sleeping(stack, running) as sleeper:
        names = list(running.names)
        await asyncio.gather(*(running.watch(name, 60) for name in names[::10]))
        await until(lambda: running.finished(len(names)))
        await running.check()
        ended = {response.name async for response in sleeper if response.event.HasField("outcome")}
        assert ended == set(names)


async def test_a_fault_on_redis_7(tmp_path_factory: pytest.TempPathFactory) -> None:
    binary = find_redis_7()
    if binary is None:
        pytest.skip("no redis-server 7 on this machine")
    folder = tmp_path_factory.mktemp("faults-7")
    with faulty_stack(folder, EmbeddedRedis(folder / "redis", free_port(), binary)) as stack:
        await run_through(stack, stack.kill_redis)


@contextlib.asynccontextmanager
async def _sleeping(stack: FaultyStack, running: Traffic) -> AsyncIterator[Any]:
    """A call of Watch for 100 queries that are under way, of which nothing is read yet."""
    await running.submit(100, tokens=200, prefix="sleep")
    targets = [pb.WatchTarget(name=name) for name in running.names]
    async with grpc.aio.insecure_channel(stack.schedulers[0].address) as channel:
        yield SchedulerServiceStub(channel).Watch(pb.WatchRequest(targets=targets))


def _calls(stack: FaultyStack) -> list[Awaitable[Any]]:
    name = f"{PARENT}/queries/away-0"
    query = query_pb2.Query(prompt="x", raw_prompt=True)
    submit = profiler_pb2.SubmitRequest(parent=PARENT, query=query)
    watch = pb.WatchRequest(targets=[pb.WatchTarget(name=name)])

    async def first(call: Any) -> Any:
        return [response async for response in call]

    async def failing(address: str, stub: Any, call: Callable[[Any], Awaitable[Any]]) -> Any:
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                return await call(stub(channel))
            except grpc.aio.AioRpcError as error:
                return from_rpc_error(error)

    scheduler = stack.schedulers[0].address
    return [
        failing(stack.profiler.address, ProfilerServiceStub, lambda stub: stub.Submit(submit, timeout=10)),
        failing(scheduler, SchedulerServiceStub, lambda stub: stub.GetQuery(pb.GetQueryRequest(name=name), timeout=10)),
        failing(scheduler, SchedulerServiceStub, lambda stub: first(stub.Watch(watch, timeout=10))),
    ]
