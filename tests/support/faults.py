"""Faults in the middle of traffic: a stack whose every process can be killed or paused, queries, and their watchers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.stack import MODEL, TRITON_MODEL, until
from tests.support.tiny_model import make_tiny_model
from tests.support.triton import load, write_static_engine
from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import EmbeddedTriton, TritonOptions
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.keys import ModelKeys

LEASE_SECONDS = 1.0
PARENT = f"tenants/t/models/{MODEL}"
KEYS = ModelKeys(MODEL)
RESTART_SECONDS = 60.0


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
        """SIGKILL of the server; started again, it serves nothing until the model is loaded, as the deployer does.

        It is paused first, so that what is dispatched meanwhile is on it for certain when it dies.
        """
        send(self.triton.process, signal.SIGSTOP)
        await asyncio.sleep(0.5)
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
