"""Faults in the middle of traffic: a stack whose every process can be killed or paused, queries, and their watchers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.stack import MODEL, TRITON_MODEL, Bench, record_of, until
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import load, write_static_engine
from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis, redis_command
from uellm.local.triton import EmbeddedTriton, TritonOptions
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.keys import GROUP, ModelKeys
from uellm.messaging.queries import state_name
from uellm.v1 import profiler_pb2, query_pb2
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_RUNNING, Outcome
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import QueryEvent

LEASE_SECONDS = 1.0
ROWS = 16
PROMPTS = 8
PUBLISH_SECONDS = 2.0
SUBMITTERS = 16
PARENT = f"tenants/t/models/{MODEL}"
KEYS = ModelKeys(MODEL)
RESTART_SECONDS = 60.0


class OtherRedis(EmbeddedRedis):
    """The same server with another binary."""

    def __init__(self, data: Path, port: int, binary: str) -> None:
        super().__init__(data, port)
        self._binary = binary

    @property
    def process(self) -> ManagedProcess:
        if self._process is None:
            argv = [self._binary, *redis_command(self.data, self.port)[1:]]
            self._process = ManagedProcess("Redis", argv, log=self.data / "redis.log", ready=self._is_ready)
        return self._process


def find_redis_7() -> str | None:
    """The system's server, not the one of the embedded stack, which may come first on PATH."""
    for folder in os.environ["PATH"].split(os.pathsep):
        binary = shutil.which("redis-server", path=folder)
        if binary and b"v=7" in subprocess.run([binary, "--version"], capture_output=True, check=True).stdout:
            return binary
    return None


@dataclass
class Service:
    """One of the services as a process of its own."""

    process: ManagedProcess
    address: str
    replica: str = ""

    def start(self) -> None:
        self.process.start()

    def signal(self, number: int) -> None:
        send(self.process, number)


def send(process: ManagedProcess, number: int) -> None:
    """Signal a process that runs."""
    assert process.pid is not None
    os.kill(process.pid, number)


def service(name: str, redis_url: str, folder: Path, replica: str = "", *flags: str) -> Service:
    """A service that was not started yet."""
    address = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", f"uellm_{name}", "--listen", address, "--redis-url", redis_url, *flags]
    if replica:
        argv += ["--replica", replica]
    label = replica or name
    process = ManagedProcess(
        label, argv, log=folder / f"{label}.log", ready=lambda: _serves(address), env=_environment()
    )
    return Service(process, address, replica)


def scheduler(redis_url: str, folder: Path, replica: str, *flags: str) -> Service:
    """A scheduler with a short lease."""
    chosen = ("--policy", "fifo", "--lease-seconds", str(LEASE_SECONDS), *flags)
    return service("scheduler", redis_url, folder, replica, *chosen)


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    services = [str(root / "services" / name) for name in ("profiler", "scheduler")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *services]), "OMP_NUM_THREADS": "1"}


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass
class FaultyStack:
    """Redis, Triton with the tiny model, two schedulers and a profiler; each can be hurt, and is made whole again."""

    redis: EmbeddedRedis
    triton: EmbeddedTriton
    schedulers: tuple[Service, ...]
    profiler: Service
    tokenizer: Path
    triton_crashes: int = 0
    """How often Triton ended by itself."""

    # --- what can happen; each returns when the part is whole again ---

    async def kill_scheduler(self) -> None:
        """SIGKILL of the owner; it is started again at once, as a supervisor would."""
        owner = await self.owner()
        await asyncio.to_thread(self._restart, owner.process)

    async def pause_scheduler(self, seconds: float = 3 * LEASE_SECONDS) -> None:
        """SIGSTOP of the owner, past its lease; the other one takes over meanwhile."""
        owner = await self.owner()
        owner.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            owner.signal(signal.SIGCONT)

    async def kill_triton(self) -> None:
        """SIGKILL of the server; started again, it serves nothing until the model is loaded, as the deployer does."""
        await asyncio.to_thread(self._restart_triton)

    async def kill_stub(self, dead_seconds: float = 1.0) -> None:
        """SIGKILL of the process that the model runs in, which Triton does not replace; loaded again after a while."""
        assert self.triton.process.pid is not None
        children = psutil.Process(self.triton.process.pid).children(recursive=True)
        [stub] = [child for child in children if "backend_stub" in child.name()]
        stub.kill()
        await asyncio.sleep(dead_seconds)
        # As the deployer does: Triton sees no reason to load what has not changed.
        (self.triton.options.repository / TRITON_MODEL / "1" / "model.py").touch()
        await asyncio.to_thread(self._load_or_restart)

    async def kill_redis(self, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        """SIGKILL; started again, when `meanwhile` has ended, on the same port with the same data."""
        send(self.redis.process, signal.SIGKILL)
        await asyncio.to_thread(self.redis.stop)
        if meanwhile is not None:
            await meanwhile()
        self.redis.start()
        await asyncio.to_thread(self.redis.wait_ready, RESTART_SECONDS)

    async def pause_redis(self, seconds: float = 6.0) -> None:
        """SIGSTOP past the time-out of every command; what was sent meanwhile is carried out when it goes on."""
        send(self.redis.process, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            send(self.redis.process, signal.SIGCONT)

    # --- what a test needs to know ---

    async def owner(self) -> Service:
        """The scheduler that owns the queue."""
        found: list[Service] = []

        async def somebody() -> bool:
            async with connected(self.redis.url) as redis:
                holder = (await redis.get(KEYS.owner) or b"").decode()
            found[:] = [one for one in self.schedulers if one.replica == holder]
            return bool(found)

        await until(somebody, RESTART_SECONDS)
        return found[0]

    def logs(self) -> str:
        """What the services have written so far."""
        return "".join(one.process.log.read_text(errors="replace") for one in (*self.schedulers, self.profiler))

    def stop(self) -> None:
        """End everything, also what is paused."""
        for one in (*self.schedulers, self.profiler):
            if one.process.running:
                one.signal(signal.SIGCONT)
            one.process.stop()
        self.triton.stop()
        if self.redis.process.running:
            send(self.redis.process, signal.SIGCONT)
        self.redis.stop()

    @staticmethod
    def _restart(process: ManagedProcess) -> None:
        send(process, signal.SIGKILL)
        process.stop()
        process.start()
        process.wait_ready(RESTART_SECONDS)

    def _load_or_restart(self) -> None:
        """Triton 2.51 may end while it replaces a model whose process has ended; a supervisor starts it again."""
        try:
            load(self.triton, TRITON_MODEL)
        except grpc.RpcError:
            if self.triton.process.running:
                raise
            self.triton_crashes += 1
            self.triton.stop()
            self.triton.start()
            self.triton.wait_ready(RESTART_SECONDS)
            load(self.triton, TRITON_MODEL)

    def _restart_triton(self) -> None:
        self._restart(self.triton.process)
        load(self.triton, TRITON_MODEL)


@contextlib.contextmanager
def faulty_stack(folder: Path, redis: EmbeddedRedis) -> Iterator[FaultyStack]:
    """A stack while the block runs."""
    weights = make_tiny_model(folder / "weights")
    options = TritonOptions(repository=folder / "models", state=folder / "triton", grpc_port=free_port())
    stack = FaultyStack(
        redis,
        EmbeddedTriton(options),
        tuple(scheduler(redis.url, folder, name) for name in ("one", "two")),
        service("profiler", redis.url, folder, "", "--predictor", "prior"),
        weights,
    )
    try:
        redis.start()
        stack.triton.start()
        redis.wait_ready()
        for one in (*stack.schedulers, stack.profiler):
            one.start()
        stack.triton.wait_ready()
        write_static_engine(options.repository, TRITON_MODEL, weights, threads="1")
        load(stack.triton, TRITON_MODEL)
        for one in (*stack.schedulers, stack.profiler):
            one.process.wait_ready(RESTART_SECONDS)
        yield stack
    finally:
        stack.stop()


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisClient]:
    """A client of Redis while the block runs."""
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


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
            found = await self.bench.store.read_many(self.names)
        except Exception:  # noqa: BLE001  (a fault is under way)
            return False
        return sum(1 for stored in found if stored is not None and stored.outcome is not None) >= count

    async def served(self) -> bool:
        """Whether a query is on the engine right now."""
        found = await self.bench.store.read_many(self.names)
        return any(one is not None and one.state == QUERY_STATE_RUNNING and one.outcome is None for one in found)

    async def state(self) -> str:
        """What became of the queries so far, for people."""
        found = await self.bench.store.read_many(self.names)
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
            assert len(seen.events) == await self.bench.redis.xlen(f"{_record(name)}:events")
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


def _record(name: str) -> str:
    _, tenant, _, model, _, query = name.split("/")
    return ModelKeys(model).query(tenant, query).record


def _timeless(event: QueryEvent) -> bytes:
    copy = QueryEvent()
    copy.CopyFrom(event)
    copy.ClearField("time")
    return copy.SerializeToString()


_QUICK = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
