"""A deployment is replaced, and comes back, under load: the whole local stack with a tiny model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.longrunning.operations_pb2 import Operation

from tests.support.tiny_model import make_tiny_model
from uellm.client import AsyncClient, Endpoints, Outcome
from uellm.local.ports import Ports
from uellm.local.predictor import PredictorKind
from uellm.local.stack import StackOptions, background_stack
from uellm.messaging.connection import connect
from uellm.messaging.keys import ModelKeys
from uellm.rpc.errors import UellmError
from uellm.v1 import deployer_pb2 as pb
from uellm.v1.deployer_pb2_grpc import DeployerServiceStub
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED

pytestmark = pytest.mark.timeout(400)
BOUND_SECONDS = 120.0
CALLERS = 8
QUERIES = 100
TOKENS = 24


class Quiet:
    """Says nothing."""

    def step(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...


@dataclass
class Load:
    """Callers who ask again as soon as they have their answer, until they are told to stop."""

    client: AsyncClient
    outcomes: list[Outcome] = field(default_factory=list)
    submitted: int = 0
    stopping: bool = False

    async def run(self) -> None:
        await asyncio.gather(*(self._caller() for _ in range(CALLERS)))

    async def _caller(self) -> None:
        while not self.stopping:
            self.submitted += 1
            query = await self.client.submit(
                f"prompt {self.submitted % 8}", max_output_tokens=TOKENS, raw_prompt=True, on_miss="finish_late"
            )
            events = [event async for event in self.client.stream(query)]
            assert [isinstance(event, Outcome) for event in events].count(True) == 1
            self.outcomes.append(events[-1])

    def served_by(self, name: str) -> int:
        return Counter(outcome.deployment for outcome in self.outcomes)[name]


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_no_query_is_lost_while_deployments_change(tmp_path: Path) -> None:
    spec = pb.DeploymentSpec(
        model="tiny", weights_path=str(make_tiny_model(tmp_path / "weights")), max_batch_rows=4, context_tokens=256
    )
    options = StackOptions(tmp_path / "state", Ports.free(), spec, predictor=PredictorKind.PRIOR)
    with background_stack(options, Quiet()) as info:
        parts = info.parts
        endpoints = Endpoints(parts["profiler"].endpoint, parts["scheduler"].endpoint, parts["deployer"].endpoint)
        async with (
            AsyncClient(endpoints, model="tiny") as client,
            grpc.aio.insecure_channel(endpoints.deployer) as channel,
        ):
            stub = DeployerServiceStub(channel)
            [first] = await client.deployments()

            async def finish(operation: Operation) -> pb.DeploymentProgress:
                async def done() -> bool:
                    nonlocal operation
                    operation = await stub.GetOperation(pb.GetOperationRequest(name=operation.name))
                    return operation.done

                await until(done)
                assert not operation.HasField("error"), operation.error
                progress = pb.DeploymentProgress()
                operation.metadata.Unpack(progress)
                return progress

            load = Load(client)

            async def served(name: str, count: int) -> None:
                before = load.served_by(name)
                await until(lambda: asyncio.sleep(0, load.served_by(name) >= before + count))

            running = asyncio.create_task(load.run())
            await served(first.name, QUERIES // 4)
            spec.max_batch_rows = 8
            create = pb.CreateDeploymentRequest(deployment_id="next", spec=spec)
            await finish(await stub.CreateDeployment(create))
            await served("deployments/next", QUERIES // 4)
            await finish(await stub.RollbackDeployment(pb.RollbackDeploymentRequest(model="tiny")))
            await served(first.name, QUERIES // 4)
            await until(lambda: asyncio.sleep(0, len(load.outcomes) >= QUERIES))
            load.stopping = True
            async with asyncio.timeout(BOUND_SECONDS):
                await running

            assert len(load.outcomes) == load.submitted >= QUERIES
            assert {outcome.state for outcome in load.outcomes} == {QUERY_STATE_COMPLETED}
            assert {outcome.dispatch_count for outcome in load.outcomes} == {1}, "drained, not cut off"
            assert [one.name for one in await client.deployments()] == [first.name]
            redis = connect(f"redis://{parts['redis'].endpoint}/0")
            keys = ModelKeys("tiny")
            try:
                assert await redis.xlen(keys.queue) == int(await redis.get(keys.depth)) == 0
                await redis.flushall()
            finally:
                await redis.aclose()

            async def answers() -> bool:
                try:
                    await client.generate("again", max_output_tokens=2)
                except UellmError:
                    return False
                return True

            await stub.Reconcile(pb.ReconcileRequest())
            await until(answers)
