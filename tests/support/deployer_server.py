"""The deployer's use cases behind a port, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import structlog

from tests.support.deployer import DeployerWorld
from uellm.rpc import server as rpc
from uellm.rpc.errors import NotFoundError, UnavailableError
from uellm.v1.deployer_pb2_grpc import add_DeployerServiceServicer_to_server
from uellm.v1.profiler_pb2 import ProfileResponse
from uellm.v1.profiler_pb2_grpc import ProfilerServiceServicer, add_ProfilerServiceServicer_to_server
from uellm.v1.scheduler_pb2 import GetQueueResponse
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server

LIMIT_SECONDS = 20.0


class LosesAnswers(grpc.aio.ServerInterceptor):
    """Calls of a method are carried out, and their answers lost, so many times."""

    def __init__(self) -> None:
        self.losses: dict[str, int] = {}

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        method = details.method.rpartition("/")[2]
        if handler is None or self.losses.get(method, 0) <= 0:
            return handler
        self.losses[method] -= 1

        async def lose(request: Any, context: Any) -> Any:
            await handler.unary_unary(request, context)
            raise UnavailableError("the answer is lost")

        return grpc.unary_unary_rpc_method_handler(lose, handler.request_deserializer, handler.response_serializer)


class Others(ProfilerServiceServicer, SchedulerServiceServicer):
    """Profiler and scheduler, which have not heard of any deployment for the first few questions."""

    unheard_of = 0

    async def Profile(self, request: Any, context: Any) -> ProfileResponse:
        if self.unheard_of > 0:
            self.unheard_of -= 1
            model = request.parent.rpartition("/")[2]
            raise NotFoundError("model", model, f"model {model} is not served", reason="MODEL_NOT_DEPLOYED")
        return ProfileResponse()

    async def GetQueue(self, request: Any, context: Any) -> GetQueueResponse:
        return GetQueueResponse(owner="one")


class DeployerServer:
    """Start it by entering it. `world` is looked at from outside: change only its fakes."""

    def __init__(self, root: Path) -> None:
        self.losses: dict[str, int] = {}
        """Answers to lose, by method."""
        self.may_load = threading.Event()
        """Loads wait for it."""
        self.may_load.set()
        self.others = Others()
        self.address = ""
        self.world: DeployerWorld
        self._root = root
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> DeployerServer:
        self._logs = structlog.testing.capture_logs()
        self._logs.__enter__()  # they would stand among what commands print
        self._thread.start()
        assert self._started.wait(LIMIT_SECONDS)
        return self

    def __exit__(self, *exception: object) -> None:
        self.may_load.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_SECONDS)
        self._loop.close()
        self._logs.__exit__(None, None, None)

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.005)

    def wait_for_a_load(self) -> None:
        """Until an operation waits for `may_load`."""
        self.wait_for(lambda: any(one.stage == "LOAD" and not one.done for one in self.operations()))

    def operations(self) -> list[Any]:
        return list(self.world.book.operations.values())

    async def _serve(self) -> None:
        self.world = world = DeployerWorld(self._root)
        load = world.triton.load

        async def load_when_let(name: str) -> None:
            while not self.may_load.is_set():
                await asyncio.sleep(0.005)
            await load(name)

        world.triton.load = load_when_let  # type: ignore[method-assign]
        losing = LosesAnswers()
        losing.losses = self.losses
        config = rpc.ServerConfig(listen="127.0.0.1:0")
        server = rpc._build(config, [losing])
        add_DeployerServiceServicer_to_server(world.servicer(), server)
        add_ProfilerServiceServicer_to_server(self.others, server)
        add_SchedulerServiceServicer_to_server(self.others, server)
        self.address = f"127.0.0.1:{rpc._bind(server, config)}"
        await server.start()
        self._started.set()
        await self._stop.wait()
        await world.operations.close()
        await server.stop(0)
