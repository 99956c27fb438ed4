"""Queries that are submitted and watched as clients do it, whatever happens meanwhile, and what must hold of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.support.faults import KEYS, PARENT, RESTART_SECONDS, FaultyStack, connected
from tests.support.stack import Bench, record_of, until
from uellm.messaging.keys import GROUP, query_keys
from uellm.messaging.queries import state_name
from uellm.v1 import profiler_pb2, query_pb2
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_RUNNING, Outcome
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import QueryEvent

ROWS = 16
PROMPTS = 8
PUBLISH_SECONDS = 2.0
SUBMITTERS = 16
_QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]


@dataclass
class Watched:
    """What one client saw of a query, over all its calls of Watch."""

    events: list[QueryEvent] = field(default_factory=list)
    cursor: str = ""
    codes: list[grpc.StatusCode] = field(default_factory=list)
    """How calls ended that did not end with the outcome."""


@dataclass
class Traffic:
    """Queries that are submitted and watched as clients do it, whatever happens meanwhile."""

    stack: FaultyStack
    bench: Bench
    names: list[str] = field(default_factory=list)
    codes: list[grpc.StatusCode] = field(default_factory=list)
    """Refusals of Submit that were tried again."""
    watched: dict[str, Watched] = field(default_factory=dict)

    async def submit(self, count: int, *, tokens: int, prefix: str) -> None:
        """Submit so many queries through the profiler; each until it is accepted, under the same id."""
        left = iter(range(count))

        async def submitter(stub: Any) -> None:
            for number in left:
                request = _request(f"{prefix}-{number}", number, tokens)
                self.names.append((await _persist(lambda r=request: stub.Submit(r, timeout=8), self.codes)).name)

        async with grpc.aio.insecure_channel(self.stack.profiler.address, _QUICK) as channel:
            stub = ProfilerServiceStub(channel)
            await asyncio.gather(*(submitter(stub) for _ in range(SUBMITTERS)))

    async def watch(self, name: str, patience_seconds: float = 90.0) -> None:
        """Watch a query until its outcome; from the other scheduler, behind the last cursor, when a call fails."""
        seen = self.watched.setdefault(name, Watched())
        async with asyncio.timeout(patience_seconds):
            for turn in range(10**6):
                address = self.stack.schedulers[turn % len(self.stack.schedulers)].address
                async with grpc.aio.insecure_channel(address, _QUICK) as channel:
                    try:
                        target = pb.WatchTarget(name=name, cursor=seen.cursor)
                        call = SchedulerServiceStub(channel).Watch(pb.WatchRequest(targets=[target]))
                        async for response in call:
                            seen.cursor = response.cursor
                            seen.events.append(response.event)
                    except grpc.aio.AioRpcError as error:
                        seen.codes.append(error.code())
                        await asyncio.sleep(0.1)
                if seen.events and seen.events[-1].HasField("outcome"):
                    return

    async def finished(self, count: int) -> bool:
        """Whether at least so many have their outcome; False while Redis does not answer."""
        try:
            found = await self.bench.store.read_many(list(self.names))
        except Exception:  # noqa: BLE001  (a fault is under way)
            return False
        return sum(1 for stored in found if stored is not None and stored.outcome is not None) >= count

    async def served(self) -> bool:
        """Whether a query is on the engine right now."""
        found = await self.bench.store.read_many(list(self.names))
        return any(one is not None and one.state == QUERY_STATE_RUNNING and one.outcome is None for one in found)

    async def state(self) -> str:
        """What became of the queries so far, for people."""
        found = await self.bench.store.read_many(list(self.names))
        states = Counter("gone" if one is None else state_name(one.state) for one in found)
        waiting = await self.bench.redis.xpending(KEYS.queue, GROUP)
        length, depth = await self.bench.redis.xlen(KEYS.queue), await self.bench.redis.get(KEYS.depth)
        return (
            f"not all have their outcome: {dict(states)}; queue {length}, pending {waiting['pending']}, depth {depth}"
        )

    async def check(self) -> list[Outcome]:
        """One outcome each, equal to its deltas; the same answer for the same prompt; nothing left; watchers saw it."""
        outcomes = await self.bench.check(self.names)
        waiting = await self.bench.redis.xpending(KEYS.queue, GROUP)
        assert waiting["pending"] == 0
        assert len(set(self.names)) == len(self.names)
        answers: dict[int, set[str]] = {}
        for name, outcome in zip(self.names, outcomes, strict=True):
            assert outcome.state == QUERY_STATE_COMPLETED, f"{name}: {outcome}"
            answers.setdefault(int(name.rpartition("-")[2]) % PROMPTS, set()).add(outcome.text)
        assert all(len(texts) == 1 for texts in answers.values()), "a retry changed an answer"
        for name, seen in self.watched.items():
            assert len(seen.events) == await self.bench.redis.xlen(query_keys(name).events)
            stored = [event.SerializeToString() for event in await self.bench.events(name)]
            assert [_timeless(event) for event in seen.events[:-1]] == stored, (
                "a watcher missed something, or saw it twice"
            )
            assert seen.events[-1].outcome == outcomes[self.names.index(name)]
        return outcomes


@contextlib.asynccontextmanager
async def traffic(stack: FaultyStack) -> AsyncIterator[Traffic]:
    """An empty Redis, the deployment published again and again, and no queries yet."""
    async with connected(stack.redis.url) as redis:
        record = record_of(stack.triton.address, rows=ROWS)
        record.tokenizer_path = str(stack.tokenizer)
        record.facts.vocabulary_size = 264
        bench = Bench(redis, record)
        await bench.publish()
        publishing = asyncio.create_task(_publish(bench))
        try:
            await stack.owner()
            await until(lambda: _known(stack.profiler.address), RESTART_SECONDS)
            yield Traffic(stack, bench)
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)


async def run_through(
    stack: FaultyStack,
    hurt: Callable[[], Awaitable[None]],
    *,
    queries: int = 300,
    tokens: int = 48,
    watchers: int = 10,
    prefix: str = "q",
    bound_seconds: float = 150.0,
) -> tuple[Traffic, list[Outcome]]:
    """Queries with a fault in their middle, to the last outcome, checked."""
    async with traffic(stack) as running:
        submitting = asyncio.create_task(running.submit(queries, tokens=tokens, prefix=prefix))
        await until(lambda: running.finished(queries // 10) if not submitting.done() else _answer(submitting), 30)
        watching = [asyncio.create_task(running.watch(name)) for name in _spread(running.names, watchers)]
        await until(running.served)
        await hurt()
        async with asyncio.timeout(bound_seconds):
            await submitting
        try:
            await until(lambda: running.finished(queries), bound_seconds)
        except AssertionError as error:
            raise AssertionError(await running.state()) from error
        await asyncio.gather(*watching)
        return running, await running.check()


def _spread(names: Sequence[str], count: int) -> Sequence[str]:
    return names[:: max(1, len(names) // count)][:count]


async def _answer(submitting: asyncio.Task[None]) -> bool:
    await submitting
    return True


async def _known(address: str) -> bool:
    """Whether the profiler follows the deployment."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = profiler_pb2.ProfileRequest(parent=PARENT, query=query_pb2.Query(prompt="x", raw_prompt=True))
        try:
            await ProfilerServiceStub(channel).Profile(request, timeout=5)
        except grpc.aio.AioRpcError:
            return False
    return True


async def _publish(bench: Bench) -> None:
    while True:
        with contextlib.suppress(Exception):
            await bench.publish()
        await asyncio.sleep(PUBLISH_SECONDS)


async def _persist(call: Callable[[], Awaitable[Any]], codes: list[grpc.StatusCode]) -> Any:
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            codes.append(error.code())
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
        await asyncio.sleep(0.2)


def _request(identifier: str, number: int, tokens: int) -> profiler_pb2.SubmitRequest:
    generation = query_pb2.GenerationParameters(max_output_tokens=tokens, repetition_penalty=1.0, top_p=1.0)
    query = query_pb2.Query(prompt=f"prompt {number % PROMPTS}", raw_prompt=True, generation=generation)
    query.engine_parameters.update({"ignore_eos": True})
    return profiler_pb2.SubmitRequest(parent=PARENT, query_id=identifier, query=query)


def _timeless(event: QueryEvent) -> bytes:
    copy = QueryEvent()
    copy.CopyFrom(event)
    copy.ClearField("time")
    return copy.SerializeToString()
