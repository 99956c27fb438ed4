"""Queries that fail, on real Redis and real Triton: their dead letters, another try; a tenant's list and outcomes."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.stack import (
    MODEL,
    TRITON_MODEL,
    Bench,
    SchedulerProcess,
    make_submission,
    owner_is,
    until,
)
from uellm.client import AsyncClient, Client, Endpoints
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.keys import ModelKeys
from uellm.rpc.errors import InvalidArgumentError, NotFoundError, OutOfRangeError, RefusedError
from uellm.rpc.status import from_rpc_error
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_FAILED, QUERY_STATE_QUEUED
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_DRAINING

TENANT = "t"
PARENT = f"tenants/{TENANT}/models/{MODEL}"


def name_of(identifier: str) -> str:
    return f"{PARENT}/queries/{identifier}"


@pytest.fixture
async def broken(bench: Bench) -> None:
    """The engine can't be reached, from the start of the scheduler on: name it before `client`."""
    await bench.redis.hdel("uellm:deployments", bench.record.name)
    bench.record.name, bench.record.triton_model = "deployments/a", "nothing--0"
    await bench.publish()


async def hold(bench: Bench) -> None:
    """Have the engine take nothing new, soon; the model stays deployed."""
    bench.record.limits.max_concurrent_batches = 0
    await bench.publish()


async def release(bench: Bench) -> None:
    bench.record.limits.max_concurrent_batches = 1
    await bench.publish()


@pytest.fixture
async def held(bench: Bench) -> None:
    """Queries wait, from the start of the scheduler on: name it before `client`."""
    await hold(bench)


@pytest.fixture
def process(redis_server: EmbeddedRedis, tmp_path: Path) -> Iterator[SchedulerProcess]:
    made = SchedulerProcess(redis_server.url, "one", tmp_path / "one.log")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.signal(signal.SIGKILL)
        made.process.wait(10)


async def started(process: SchedulerProcess, *flags: str) -> Endpoints:
    process.start(*flags)
    async with process.stub() as stub:
        await until(lambda: owner_is(stub, "one"))
    return Endpoints(scheduler=f"127.0.0.1:{process.port}")


@pytest.fixture
async def client(process: SchedulerProcess, bench: Bench) -> AsyncIterator[AsyncClient]:
    endpoints = await started(process, "--max-attempts", "1", "--queue-limit", "1")
    async with AsyncClient(endpoints, model=MODEL, tenant=TENANT) as made:
        yield made


async def letters_of(client: AsyncClient) -> list[str]:
    return [letter.name async for letter in client.dead_letters()]


async def test_a_poison_query_ends_in_a_dead_letter_and_its_mates_complete(
    held: None, client: AsyncClient, bench: Bench
):
    mates = [make_submission(f"good-{number}", tokens=10) for number in range(3)]
    poison = make_submission("bad", tokens=10, prompt=[1, 100_000])
    await bench.submit(mates[0], poison, *mates[1:])
    names = [mates[0].name, poison.name, mates[1].name, mates[2].name]
    await until(lambda: waiting(client, 4))
    await release(bench)
    await until(lambda: bench.all_finished(names))
    outcomes = await bench.check(names)
    assert [outcome.state for outcome in outcomes].count(QUERY_STATE_COMPLETED) == 3
    assert {outcome.batch_id for outcome in outcomes} == {outcomes[0].batch_id}, "they ran together"
    [letter] = [letter async for letter in client.dead_letters()]
    assert (letter.name, letter.failure) == (poison.name, outcomes[1].failure)
    assert letter.failure.reason == "ENGINE_ERROR"
    assert "100000" in letter.failure.message
    assert (letter.record, letter.entry) == (poison.record, poison.entry)
    [attempt] = letter.attempts
    assert (attempt.attempt, attempt.batch_id) == (1, outcomes[1].batch_id)
    assert attempt.deployment == bench.record.name
    assert letter.fail_time.ToMilliseconds() >= outcomes[1].timing.dispatch_time.ToMilliseconds()


async def test_a_replay_is_another_query_and_may_be_asked_for_again(client: AsyncClient, bench: Bench):
    poison = make_submission("bad", tokens=10, prompt=[1, 100_000])
    await bench.submit(poison)
    await until(lambda: bench.all_finished([poison.name]))
    replayed = await asyncio.gather(*(client.replay(poison.name) for _ in range(3)))
    assert set(replayed) == {name_of("bad-replay")}
    await until(lambda: bench.all_finished([name_of("bad-replay")]))
    assert await letters_of(client) == [name_of("bad-replay")], "its own letter; the first one was taken off"
    assert await client.replay(poison.name) == name_of("bad-replay")
    assert await client.replay(name_of("bad-replay")) == name_of("bad-replay-2")
    await until(lambda: bench.all_finished([name_of("bad-replay-2")]))
    assert await letters_of(client) == [name_of("bad-replay-2")]


async def test_after_the_engine_is_mended_a_replay_is_answered(broken: None, client: AsyncClient, bench: Bench):
    made, taken = make_submission("q", tokens=5), make_submission("q-replay", tokens=5)
    made.entry.slo.completion.FromSeconds(60)
    await bench.submit(made)
    await until(lambda: bench.all_finished([made.name]))
    [letter] = [letter async for letter in client.dead_letters()]
    assert letter.failure.reason == "RETRIES_EXHAUSTED"
    assert [(a.attempt, a.failure.reason, a.deployment) for a in letter.attempts] == [
        (1, "ENGINE_LOST", "deployments/a")
    ]

    await bench.redis.hdel("uellm:deployments", bench.record.name)
    bench.record.name, bench.record.triton_model = "deployments/b", TRITON_MODEL
    await bench.publish()

    async def mended() -> bool:
        return await engines(bench) == {"deployments/b"}

    await until(mended)
    await bench.submit(taken)  # somebody's own query has the id
    await until(lambda: bench.all_finished([taken.name]))
    new = await client.replay(made.name)
    assert new == name_of("q-replay-2")
    outcome = await client.outcome(new)
    assert (outcome.state, outcome.output_tokens, outcome.slo_met) == (QUERY_STATE_COMPLETED, 5, True)
    accepted = outcome.timing.accept_time.ToMilliseconds()
    assert accepted > letter.fail_time.ToMilliseconds(), "its deadline counts anew"
    assert await client.replay(made.name) == new
    assert await letters_of(client) == []


async def test_a_replay_is_refused_as_any_submission(client: AsyncClient, bench: Bench):
    poison = make_submission("bad", tokens=10, prompt=[1, 100_000])
    await bench.submit(poison)
    await until(lambda: bench.all_finished([poison.name]))
    await hold(bench)
    first, second = (make_submission(f"blocker-{number}", tokens=390) for number in range(2))
    await bench.submit(first)
    await until(lambda: known(client))
    await bench.submit(second)  # it waits for the first one's end where the engine is not held yet
    await until(lambda: waiting(client, 1))
    with pytest.raises(RefusedError) as full:
        await client.replay(poison.name)
    detail = full.value.refusal.queue_full
    assert (full.value.reason, detail.limit) == ("QUEUE_FULL", 1)
    assert detail.depth >= 1
    assert detail.retry_after.ToMilliseconds() > 0
    bench.record.state = DEPLOYMENT_STATE_DRAINING
    await bench.publish()

    async def not_deployed() -> bool:
        with pytest.raises(RefusedError) as refused:
            await client.replay(poison.name)
        return refused.value.reason == "MODEL_NOT_DEPLOYED"

    await until(not_deployed)
    with pytest.raises(NotFoundError):
        await client.replay(name_of("unknown"))
    with pytest.raises(InvalidArgumentError):
        await client.replay("nonsense")
    with pytest.raises(NotFoundError):
        await anext(client.dead_letters("never"))
    assert await letters_of(client) == [poison.name], "what is refused stays"


async def test_pages_follow_each_other(client: AsyncClient, bench: Bench, process: SchedulerProcess):
    made = [make_submission(f"bad-{number}", tokens=2, prompt=[1, 100_000]) for number in range(7)]
    await bench.submit(*made)
    names = [one.name for one in made]
    await until(lambda: bench.all_finished(names))
    async with process.stub() as stub:
        for method, request, field in (
            (stub.ListDeadLetters, pb.ListDeadLettersRequest(model=MODEL, page_size=3), "dead_letters"),
            (stub.ListQueries, pb.ListQueriesRequest(parent=PARENT, page_size=3), "queries"),
        ):
            sizes, seen = [], []
            while True:
                page = await method(request)
                sizes.append(len(getattr(page, field)))
                seen += [one.name for one in getattr(page, field)]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert sizes == [3, 3, 1]
            assert sorted(seen) == names
        assert seen == names, "queries come by acceptance"


async def test_a_tenant_lists_its_queries_and_watches_their_outcomes(
    held: None, client: AsyncClient, bench: Bench, process: SchedulerProcess
):
    made = [make_submission(f"q{number}", tokens=3) for number in range(4)]
    names = [one.name for one in made]
    async with process.stub() as stub:
        watch = aiter(stub.Watch(pb.WatchRequest(parent=PARENT)))
        begun = await anext(watch)
        assert (begun.name, begun.HasField("event")) == (PARENT, False)
        await bench.submit(*made)
        listed = [(status.name, status.state, status.HasField("outcome")) async for status in client.queries()]
        assert listed == [(name, QUERY_STATE_QUEUED, False) for name in names]
        await release(bench)
        ended = [await asyncio.wait_for(anext(watch), 60) for _ in made]
    assert {(one.name, one.event.outcome.SerializeToString()) for one in ended} == {
        (name, (await bench.outcome(name)).SerializeToString()) for name in names
    }
    listed = [(status.name, status.outcome.state) async for status in client.queries()]
    assert listed == [(name, QUERY_STATE_COMPLETED) for name in names]
    for cursor, left in ((begun.cursor, ended), (ended[1].cursor, ended[2:])):
        outcomes = client.outcomes(cursor=cursor)
        again = [await anext(outcomes) for _ in left]
        assert [(one.name, one.outcome, one.cursor) for one in again] == [
            (one.name, one.event.outcome, one.cursor) for one in left
        ]
    with pytest.raises(OutOfRangeError, match="kept for"):
        await anext(client.outcomes(cursor="1-0"))
    assert [status async for status in client.queries(tenant="other")] == []


async def test_the_client_for_threads_has_the_same(client: AsyncClient, bench: Bench, process: SchedulerProcess):
    poison = make_submission("bad", tokens=10, prompt=[1, 100_000])
    await bench.submit(poison)
    await until(lambda: bench.all_finished([poison.name]))
    [entry] = await bench.redis.xrange(ModelKeys(MODEL).outcomes(TENANT))
    milliseconds = int(entry[0].decode().partition("-")[0])

    def use() -> None:
        with Client(Endpoints(scheduler=f"127.0.0.1:{process.port}"), model=MODEL, tenant=TENANT) as threads:
            assert [letter.name for letter in threads.dead_letters()] == [poison.name]
            assert [status.state for status in threads.queries()] == [QUERY_STATE_FAILED]
            ended = next(threads.outcomes(cursor=f"{milliseconds - 1}-0"))
            assert (ended.name, ended.outcome.failure.reason) == (poison.name, "ENGINE_ERROR")
            assert threads.replay(poison.name) == name_of("bad-replay")

    await asyncio.to_thread(use)


async def test_the_command_line_shows_them(
    client: AsyncClient,
    bench: Bench,
    process: SchedulerProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    from uellm.cli import queries

    for service in ("PROFILER", "SCHEDULER", "DEPLOYER"):
        monkeypatch.setenv(f"UELLM_{service}", f"127.0.0.1:{process.port}")
    poison = make_submission("bad", tokens=10, prompt=[1, 100_000])
    await bench.submit(poison)
    await until(lambda: bench.all_finished([poison.name]))

    async def said(command: Callable[[], None]) -> str:
        await asyncio.to_thread(command)
        return capsys.readouterr().out

    shown = await said(lambda: queries.show_letters(tmp_path, MODEL, as_json=False))
    assert poison.name in shown
    assert "ENGINE_ERROR" in shown
    [letter] = json.loads(await said(lambda: queries.show_letters(tmp_path, MODEL, as_json=True)))["dead_letters"]
    assert letter["record"]["prompt_token_ids"]["ids"] == [1, 100_000]
    assert "failed" in await said(lambda: queries.show(tmp_path, MODEL, TENANT, as_json=False))
    [listed] = json.loads(await said(lambda: queries.show(tmp_path, MODEL, TENANT, as_json=True)))["queries"]
    assert listed["outcome"]["state"] == "QUERY_STATE_FAILED"
    assert name_of("bad-replay") in await said(lambda: queries.replay(tmp_path, poison.name))


async def test_wrong_requests_name_the_field(process: SchedulerProcess, bench: Bench):
    await started(process)
    wrong = [
        ("ListQueries", pb.ListQueriesRequest(parent="x"), "parent"),
        ("ListQueries", pb.ListQueriesRequest(parent=PARENT, page_size=-1), "page_size"),
        ("ListQueries", pb.ListQueriesRequest(parent=PARENT, page_token="x"), "page_token"),
        ("ListDeadLetters", pb.ListDeadLettersRequest(model="../x"), "model"),
        ("ListDeadLetters", pb.ListDeadLettersRequest(model=MODEL, page_token="eA=="), "page_token"),
        ("Watch", pb.WatchRequest(parent="x"), "parent"),
        ("Watch", pb.WatchRequest(parent=PARENT, cursor="x"), "cursor"),
        ("Watch", pb.WatchRequest(parent=PARENT, targets=[pb.WatchTarget(name=name_of("q"))]), "targets"),
    ]
    async with process.stub() as stub:
        for method, request, field in wrong:
            call = getattr(stub, method)(request)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await (anext(aiter(call)) if method == "Watch" else call)
            error = from_rpc_error(raised.value)
            assert isinstance(error, InvalidArgumentError)
            assert [violation.field for violation in error.violations] == [field]


async def waiting(client: AsyncClient, count: int) -> bool:
    return (await client.queue()).queued >= count


async def known(client: AsyncClient) -> bool:
    queue = await client.queue()
    return queue.queued + queue.running == 1


async def engines(bench: Bench) -> set[str]:
    """The deployments that the owner knows."""
    return {name.decode() for name in await bench.redis.hkeys(ModelKeys(MODEL).running)}
