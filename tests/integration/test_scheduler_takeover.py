"""Schedulers killed, stopped or paused in the middle, and Redis killed: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from tests.support.stack import Bench, SchedulerProcess, make_submission, owner_is, record_of, until
from uellm.local.process import free_port
from uellm.local.redis import EmbeddedRedis
from uellm.messaging.connection import connect
from uellm.v1.query_pb2 import (
    QUERY_STATE_COMPLETED,
)


async def test_sigkill_in_the_middle_and_a_restart_lose_nothing(replicas, bench: Bench):
    made = [make_submission(f"q{number}", tokens=120) for number in range(24)]
    undisturbed = await _texts(
        replicas[1], bench, [make_submission(f"u{n}", tokens=120, prompt=_ids(n)) for n in (0, 5)]
    )
    names = [one.name for one in made]
    replicas[0].start()
    async with replicas[0].stub() as stub:
        await until(lambda: owner_is(stub, "one"))
        await bench.submit(*made)
        await until(lambda: _has_delta(bench, names[5]))
    replicas[0].signal(signal.SIGKILL)
    replicas[0].process.wait(10)
    replicas[0].start()
    await until(lambda: bench.all_finished(names))
    outcomes = await bench.check(names)
    assert {outcome.state for outcome in outcomes} == {QUERY_STATE_COMPLETED}
    assert {outcome.output_tokens for outcome in outcomes} == {120}
    assert any(outcome.dispatch_count > 1 for outcome in outcomes), "nothing was running when it was killed"
    assert [outcomes[0].text, outcomes[5].text] == undisturbed
    assert replicas[0].end() == 0


async def test_a_scheduler_that_is_told_to_stop_hands_over(replicas, bench: Bench):
    made = [make_submission(f"q{number}", tokens=150) for number in range(8)]
    names = [one.name for one in made]
    for replica in replicas:
        replica.lease_seconds = 30
        replica.start()
    async with replicas[0].stub() as stub:

        async def somebody_owns() -> bool:
            return await owner_is(stub, "one") or await owner_is(stub, "two")

        await until(somebody_owns)
        owner, other = replicas if await owner_is(stub, "one") else reversed(replicas)
    await bench.submit(*made)
    await until(lambda: _has_delta(bench, names[1]))
    assert owner.end() == 0
    await until(lambda: bench.all_finished(names))
    outcomes = await bench.check(names)
    assert {(o.state, o.output_tokens) for o in outcomes} == {(QUERY_STATE_COMPLETED, 150)}
    assert {outcome.dispatch_count for outcome in outcomes} <= {1, 2}
    assert other.end() == 0


async def test_a_replica_that_was_paused_past_its_lease_does_no_harm(replicas, bench: Bench):
    made = [make_submission(f"q{number}", tokens=150) for number in range(16)]
    names = [one.name for one in made]
    replicas[0].start()
    async with replicas[0].stub() as stub:
        await until(lambda: owner_is(stub, "one"))
        await bench.submit(*made)
        await until(lambda: _has_delta(bench, names[5]))
    replicas[0].signal(signal.SIGSTOP)
    replicas[1].start()
    async with replicas[1].stub() as stub:
        await until(lambda: owner_is(stub, "two"))
        await until(lambda: _some_finished(bench, names))
        replicas[0].signal(signal.SIGCONT)
        await until(lambda: bench.all_finished(names))
    outcomes = await bench.check(names)
    assert {outcome.state for outcome in outcomes} == {QUERY_STATE_COMPLETED}
    assert {outcome.output_tokens for outcome in outcomes} == {150}
    assert any(outcome.dispatch_count > 1 for outcome in outcomes)
    assert replicas[0].end() == 0
    assert replicas[1].end() == 0
    assert "lost a queue" in replicas[0].log.read_text() or "fenced" in replicas[0].log.read_text()


async def test_redis_killed_and_restarted_in_the_middle_loses_nothing(tiny_triton, replicas, tmp_path: Path):
    server = EmbeddedRedis(tmp_path / "redis", free_port())
    server.start()
    server.wait_ready()
    try:
        client = connect(server.url)
        bench = Bench(client, record_of(tiny_triton.address))
        await bench.publish()
        scheduler = SchedulerProcess(server.url, "three", tmp_path / "three.log", lease_seconds=5)
        replicas.append(scheduler)
        scheduler.start()
        made = [make_submission(f"q{number}", tokens=120) for number in range(16)]
        names = [one.name for one in made]
        await bench.submit(*made)
        await until(lambda: _has_delta(bench, names[5]))
        assert server.process.pid is not None
        os.kill(server.process.pid, signal.SIGKILL)
        server.stop()
        server = EmbeddedRedis(tmp_path / "redis", server.port)
        server.start()
        server.wait_ready()
        await client.connection_pool.disconnect()
        await until(lambda: bench.all_finished(names))
        outcomes = await bench.check(names)
        assert {(o.state, o.output_tokens) for o in outcomes} == {(QUERY_STATE_COMPLETED, 120)}
        assert scheduler.end() == 0
        await client.aclose()
    finally:
        server.stop()


def _ids(number: int) -> list[int]:
    return [ord(letter) for letter in f"q{number}"]


async def _texts(replica: SchedulerProcess, bench: Bench, made) -> list[str]:
    replica.start()
    await bench.submit(*made)
    names = [one.name for one in made]
    await until(lambda: bench.all_finished(names))
    assert replica.end() == 0
    return [outcome.text for outcome in await bench.check(names)]


async def _has_delta(bench: Bench, name: str) -> bool:
    return any(event.HasField("token_delta") for event in await bench.events(name))


async def _some_finished(bench: Bench, names: list[str]) -> bool:
    outcomes = await asyncio.gather(*(bench.outcome(name) for name in names))
    return any(outcome is not None for outcome in outcomes)
