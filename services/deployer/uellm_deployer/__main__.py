"""The deployer as a process: `python -m uellm_deployer --help`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from prometheus_client import REGISTRY

from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import connect
from uellm.messaging.deployments import DeploymentPublisher
from uellm.rpc.errors import UellmError
from uellm.rpc.logging import configure_logging
from uellm.rpc.server import run, serve
from uellm.rpc.settings import load
from uellm.v1.deployer_pb2_grpc import add_DeployerServiceServicer_to_server
from uellm_deployer.adapters.docker_host import DockerHost
from uellm_deployer.adapters.feedback import RedisFeedback
from uellm_deployer.adapters.journal import FileJournal, JournalError
from uellm_deployer.adapters.machine import Machine, SeenByTriton
from uellm_deployer.adapters.metrics import Metrics
from uellm_deployer.adapters.model_folder import ModelFolders
from uellm_deployer.adapters.nvml import Nvml
from uellm_deployer.adapters.publisher import RedisPublisher
from uellm_deployer.adapters.repository import ModelRepository, RepositoryBusyError, UnsafeNameError
from uellm_deployer.adapters.system_clock import SystemClock
from uellm_deployer.adapters.triton_config import TritonRenderer
from uellm_deployer.adapters.triton_control import ControlTimes, TritonControl
from uellm_deployer.adapters.triton_host import FixedHost, LocalHost
from uellm_deployer.app.advising import Adviser
from uellm_deployer.app.book import Book, compacted
from uellm_deployer.app.creation import CreateDeployment
from uellm_deployer.app.host import RestartTriton
from uellm_deployer.app.keeper import Keeper
from uellm_deployer.app.memory import MemoryWatch
from uellm_deployer.app.monitor import Monitor
from uellm_deployer.app.operations import Operations
from uellm_deployer.app.planning import Planning
from uellm_deployer.app.ports import ModelServer, Publisher, Renderer, TritonHost
from uellm_deployer.app.reconcile import Reconcile
from uellm_deployer.app.removal import DeleteDeployment, Removal
from uellm_deployer.app.rollback import RollbackDeployment
from uellm_deployer.app.signals import Feedback, Gauges
from uellm_deployer.app.traffic import SetTraffic
from uellm_deployer.app.upkeep import upkeep
from uellm_deployer.config import DeployerSettings
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.server import SERVICE, DeployerServicer


@dataclass(frozen=True, slots=True)
class Application:
    """The use cases, wired."""

    book: Book
    operations: Operations
    keeper: Keeper
    monitor: Monitor
    memory: MemoryWatch
    servicer: DeployerServicer


def build(
    settings: DeployerSettings,
    repository: ModelRepository,
    triton: ModelServer,
    publisher: Publisher,
    feedback: Feedback,
    gauges: Gauges,
    endpoint: str,
) -> Application:
    """Wire the use cases around a repository, a Triton, and what is published and read of the others."""
    book = Book(FileJournal(repository.root / "journal", compacted))
    clock = SystemClock()
    renderer: Renderer = TritonRenderer(repository.root, settings.repository_in_triton)
    machine = Machine(Nvml.open())
    memory = MemoryWatch(triton, book, machine, clock)
    server: ModelServer = memory
    operations = Operations(book, clock, lambda: uuid.uuid4().hex)
    host = host_of(settings)
    planning = Planning(book, SeenByTriton(machine, host), ModelFolders(), HelrPlanner())
    removal = Removal(book, repository, server, publisher, clock)
    create = CreateDeployment(book, operations, planning, removal, renderer, repository, server, publisher, clock)
    restart = RestartTriton(book, removal, server, publisher, host, clock)
    keeper = Keeper(book, operations, removal, renderer, repository, server, publisher, restart)
    delete = DeleteDeployment(book, operations, removal)
    traffic = SetTraffic(book, operations, publisher)
    rollback = RollbackDeployment(book, operations, create)
    reconcile = Reconcile(book, operations, keeper, repository, server, publisher, restart)
    adviser, window = Adviser(book, planning), settings.monitor_window_seconds
    monitor = Monitor(book, operations, adviser, machine, server, feedback, gauges, clock, window)
    servicer = DeployerServicer(book, planning, create, delete, traffic, rollback, reconcile, endpoint)
    return Application(book, operations, keeper, monitor, memory, servicer)


def host_of(settings: DeployerSettings) -> TritonHost:
    """Who can restart Triton."""
    if settings.triton_host == "local" and settings.triton_state is not None:
        return LocalHost(settings.triton_state, os.environ)
    if settings.triton_host == "compose":
        return DockerHost(settings.docker_socket, settings.triton_container)
    return FixedHost(settings.triton_endpoint, settings.triton_visible_devices)


async def serve_deployer(settings: DeployerSettings, repository: ModelRepository) -> None:
    """Serve until told to stop."""
    redis = connect(settings.redis_url.get_secret_value())
    clock = RedisClock(redis)
    channel = grpc.aio.insecure_channel(settings.triton_endpoint)
    triton = TritonControl(
        channel,
        settings.triton_control_key,
        settings.triton_control_secret.get_secret_value(),
        ControlTimes(load=settings.load_timeout_seconds),
    )
    endpoint = settings.triton_published_endpoint or settings.triton_endpoint
    publisher = RedisPublisher(DeploymentPublisher(redis, clock), endpoint)
    metrics = Metrics()
    REGISTRY.register(metrics)
    app = build(settings, repository, triton, publisher, RedisFeedback(redis), metrics, endpoint)
    stop = asyncio.Event()

    @contextlib.asynccontextmanager
    async def lifecycle() -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(redis.aclose)
            stack.push_async_callback(channel.close, None)
            await stack.enter_async_context(clock.following())
            stack.push_async_callback(app.operations.close)
            await stack.enter_async_context(upkeep(app.keeper, app.monitor, app.memory))
            await stack.enter_async_context(_closing_watches(app.book, stop))
            yield

    async def ready() -> bool:
        try:
            await triton.ready_models()
        except UellmError:
            return False
        return app.keeper.settled and bool(await redis.ping())

    await serve(
        settings,
        [(add_DeployerServiceServicer_to_server, app.servicer)],
        [SERVICE],
        lifecycle=lifecycle(),
        ready=ready,
        stop=stop,
    )


@contextlib.asynccontextmanager
async def _closing_watches(book: Book, stop: asyncio.Event) -> AsyncIterator[None]:
    """End watches when the server stops, so that they don't use up its grace."""

    async def close() -> None:
        await stop.wait()
        book.close()

    closing = asyncio.create_task(close())
    try:
        yield
    finally:
        closing.cancel()


def main(argv: list[str]) -> int:
    """Run the service; returns the exit code."""
    settings = load(DeployerSettings, argv, prog="python -m uellm_deployer")
    configure_logging("deployer", settings.log_level, settings.log_format)
    try:
        repository = ModelRepository(settings.repository)
        with contextlib.closing(repository):
            return run(serve_deployer(settings, repository))
    except (RepositoryBusyError, UnsafeNameError, JournalError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
