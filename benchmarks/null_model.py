"""Measures queries a second from SubmitStream to the outcome at a watcher, with a model that costs nothing.

The way of a query and nothing else: profiler with the statistical prior, Redis, scheduler, and a real Triton whose
Python-backend model answers every row at once with one token; all are processes on this machine. Outcomes come by Watch
to the process that submits. Besides the rate: processor time of each process and Redis commands, per query, which say
what bounds it and depend less on what else the machine does. Run with `.venv/bin/python benchmarks/null_model.py`;
`--profile FOLDER` writes cProfile statistics of the services. Figures go to stdout as JSON; no test asserts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from uellm_deployer.backends.common import contract

from uellm.cost.steps import StepTime
from uellm.local.model import default_model
from uellm.local.process import ManagedProcess, free_port
from uellm.local.redis import EmbeddedRedis
from uellm.local.triton import EmbeddedTriton, TritonOptions
from uellm.messaging.clock import RedisClock
from uellm.messaging.connection import RedisClient, connect
from uellm.messaging.deployments import DeploymentPublisher
from uellm.rpc.channel import open_channel
from uellm.v1.profiler_pb2 import ProfileRequest, SubmitRequest, SubmitStreamRequest
from uellm.v1.profiler_pb2_grpc import ProfilerServiceStub
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, GenerationParameters, Query
from uellm.v1.scheduler_pb2 import WatchRequest, WatchTarget
from uellm.v1.scheduler_pb2_grpc import SchedulerServiceStub
from uellm.v1.stream_pb2 import (
    DEPLOYMENT_STATE_READY,
    ENGINE_KIND_STATIC,
    DeploymentRecord,
    EngineLimits,
    ModelFacts,
)

MODEL = "null"
TRITON_MODEL = "null--0"
PARENT = f"tenants/bench/models/{MODEL}"
PROMPT = "Explain in three sentences why the sky is blue, and why sunsets are red."
WATCHED_AT_ONCE = 128
READY_SECONDS = 120.0
NULL_MODEL = """
import json

import numpy as np
import triton_python_backend_utils as pb_utils


def strings(name, values):
    return pb_utils.Tensor(name, np.array([value.encode() for value in values], dtype=np.object_))


def integers(name, values):
    return pb_utils.Tensor(name, np.array(values, dtype=np.int32))


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            action = json.loads(request.parameters() or "{}").get("action", "generate")
            tensors = [strings("step_aggregates", ["{}"])]
            if action == "generate":
                names = [n.decode() for n in pb_utils.get_input_tensor_by_name(request, "row_id").as_numpy()]
                lengths = pb_utils.get_input_tensor_by_name(request, "prompt_lengths").as_numpy()
                rows, ones = len(names), [1] * len(names)
                tensors = [strings("row_id", names), strings("text_output", ["."] * rows)]
                tensors += [integers("token_ids", ones), integers("token_counts", ones)]
                tensors += [integers("first_token_index", [0] * rows), integers("input_tokens", lengths)]
                tensors += [strings("finish_reason", ["stop"] * rows), strings("error", [""] * rows)]
            response = pb_utils.InferenceResponse(output_tensors=tensors)
            request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write_null_model(repository: Path) -> None:
    """Put the model into a repository."""
    model = model_config_pb2.ModelConfig(name=TRITON_MODEL, backend=contract.BACKEND, max_batch_size=0)
    for one in contract.INPUTS:
        kind = model_config_pb2.DataType.Value(one.data_type)
        model.input.add(name=one.name, data_type=kind, dims=one.dims, optional=True)
    for one in contract.OUTPUTS:
        model.output.add(name=one.name, data_type=model_config_pb2.DataType.Value(one.data_type), dims=one.dims)
    model.model_transaction_policy.decoupled = True
    model.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    (repository / TRITON_MODEL / "1").mkdir(parents=True)
    (repository / TRITON_MODEL / "1" / "model.py").write_text(NULL_MODEL)
    (repository / TRITON_MODEL / "config.pbtxt").write_text(str(model))


def load_null_model(triton: EmbeddedTriton) -> None:
    """Have it loaded."""
    with grpc.insecure_channel(triton.address) as channel:
        request = service_pb2.RepositoryModelLoadRequest(model_name=TRITON_MODEL)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.RepositoryModelLoad(request, metadata=tuple(triton.control_metadata.items()), timeout=READY_SECONDS)


def deployment(endpoint: str) -> DeploymentRecord:
    """What the deployer would publish of it."""
    return DeploymentRecord(
        name="deployments/null",
        model=MODEL,
        triton_model=TRITON_MODEL,
        triton_endpoint=endpoint,
        engine_kind=ENGINE_KIND_STATIC,
        state=DEPLOYMENT_STATE_READY,
        facts=ModelFacts(context_limit_tokens=2_048, kv_bytes_per_token=46_080, vocabulary_size=49_152),
        limits=EngineLimits(
            context_tokens=2_048,
            max_output_tokens=512,
            max_batch_rows=64,
            max_concurrent_batches=2,
            kv_budget_bytes=10**12,
            resumable=True,
        ),
        tokenizer_path=str(default_model()),
        step_time_prior=StepTime(0.02, 0.002, 1e-6, 1e-4, 0.01).to_prior("benchmark"),
        traffic_share=1,
    )


async def watch(stub: Any, names: list[str]) -> None:
    """See the outcomes of some queries, with all that happens to them before."""
    left = set(names)
    async for response in stub.Watch(WatchRequest(targets=[WatchTarget(name=name) for name in names])):
        if response.event.HasField("outcome"):
            _check(response)
            left.remove(response.name)
    if left:
        raise RuntimeError(f"{len(left)} outcomes did not come")


async def submit(stub: Any, count: int) -> AsyncIterator[str]:
    """Submit so many queries over one stream; yields their names as they are accepted."""

    async def requests() -> AsyncIterator[SubmitStreamRequest]:
        query = Query(prompt=PROMPT, generation=GenerationParameters(max_output_tokens=128))
        for number in range(count):
            yield SubmitStreamRequest(correlation_id=str(number), submit=SubmitRequest(parent=PARENT, query=query))

    async for answer in stub.SubmitStream(requests()):
        if answer.HasField("refused"):
            raise RuntimeError(answer.refused.message)
        yield answer.accepted.name


async def run_by_query(submitting: Any, watching: Any, count: int) -> None:
    """Every query is watched by name, event by event."""
    async with asyncio.TaskGroup() as watchers:
        names: list[str] = []
        async for name in submit(submitting, count):
            names.append(name)
            if len(names) == WATCHED_AT_ONCE:
                watchers.create_task(watch(watching, names))
                names = []
        if names:
            watchers.create_task(watch(watching, names))


async def run_by_tenant(submitting: Any, watching: Any, count: int) -> None:
    """One watcher sees the outcomes of all of the tenant's queries."""
    call = watching.Watch(WatchRequest(parent=PARENT))
    await call.read()  # from here on nothing is missed
    ended: set[str] = set()

    async def read() -> None:
        while len(ended) < count:
            response = await call.read()
            _check(response)
            ended.add(response.name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read())
        accepted = {name async for name in submit(submitting, count)}
    call.cancel()
    if accepted != ended:
        raise RuntimeError(f"{len(accepted - ended)} outcomes did not come")


def _check(response: Any) -> None:
    if response.event.outcome.state != QUERY_STATE_COMPLETED:
        raise RuntimeError(f"{response.name} did not complete")


RUNS = {"tenant": run_by_tenant, "query": run_by_query}


async def run_once(profiler: grpc.aio.Channel, scheduler: grpc.aio.Channel, count: int, by: str) -> float:
    """Submit so many queries over one stream and see all their outcomes; returns the seconds."""
    begin = time.perf_counter()
    await RUNS[by](ProfilerServiceStub(profiler), SchedulerServiceStub(scheduler), count)  # type: ignore[no-untyped-call]
    return time.perf_counter() - begin


async def measure(count: int, rounds: int, by: str, profile: Path | None) -> dict[str, Any]:
    """All figures; the first round warms up and is not counted."""
    with tempfile.TemporaryDirectory() as name:
        async with (
            stack(Path(name), profile) as (processes, redis, addresses),
            open_channel(addresses["profiler"]) as profiler,
            open_channel(addresses["scheduler"]) as scheduler,
        ):
            await run_once(profiler, scheduler, count, by)
            before, commands = _processor_seconds(processes), await _commands(redis)
            seconds = [await run_once(profiler, scheduler, count, by) for _ in range(rounds)]
            spent = _processor_seconds(processes)
            commands = await _commands(redis) - commands
    total = count * rounds
    return {
        "queries": count,
        "watched_by": by,
        "rounds": rounds,
        "load_average": round(os.getloadavg()[0], 1),
        "median_per_s": round(median(count / one for one in seconds), 1),
        "each_per_s": [round(count / one, 1) for one in seconds],
        "processor_ms_per_query": {one: round(1000 * (spent[one] - before[one]) / total, 3) for one in spent},
        "processor_ms_per_query_in_all": round(1000 * (sum(spent.values()) - sum(before.values())) / total, 3),
        "redis_commands_per_query_those_of_scripts_included": round(commands / total, 2),
    }


@contextlib.asynccontextmanager
async def stack(
    folder: Path, profile: Path | None
) -> AsyncIterator[tuple[Mapping[str, psutil.Process], RedisClient, Mapping[str, str]]]:
    """Everything, while the block runs; yields processes, a client of Redis, and the services' addresses."""
    redis = EmbeddedRedis(folder / "redis", free_port())
    triton = EmbeddedTriton(TritonOptions(folder / "models", folder / "triton", free_port()))
    addresses = {name: f"127.0.0.1:{free_port()}" for name in ("profiler", "scheduler")}
    flags = {
        "profiler": ["--predictor", "prior", "--queue-limit", "100000000"],
        "scheduler": ["--policy", "fifo"],
    }
    services = {
        name: _service(name, address, redis.url, folder, flags[name], profile) for name, address in addresses.items()
    }
    write_null_model(folder / "models")
    redis.start()
    triton.start()
    try:
        redis.wait_ready()
        await asyncio.to_thread(triton.wait_ready, READY_SECONDS)
        await asyncio.to_thread(load_null_model, triton)
        client = connect(redis.url)
        clock = RedisClock(client)
        await clock.synchronise()
        publishing = asyncio.create_task(_publish(DeploymentPublisher(client, clock), deployment(triton.address)))
        for service in services.values():
            service.start()
            await asyncio.to_thread(service.wait_ready, READY_SECONDS)
        await _until_served(addresses["profiler"])
        started = {"redis": redis.process, "triton": triton.process, **services}
        processes = {name: psutil.Process(process.pid) for name, process in started.items()}
        processes["model"] = processes["triton"].children()[0]
        processes["client"] = psutil.Process()
        yield processes, client, addresses
        publishing.cancel()
        await client.aclose()
    finally:
        for service in services.values():
            service.stop()
        triton.stop()
        redis.stop()


def _service(
    name: str, address: str, redis_url: str, folder: Path, flags: list[str], profile: Path | None
) -> ManagedProcess:
    profiled = [] if profile is None else ["-m", "cProfile", "-o", str(profile / f"{name}.pstats")]
    argv = [sys.executable, *profiled, "-m", f"uellm_{name}", "--listen", address, "--redis-url", redis_url]
    argv += ["--log-level", "warning", "--shutdown-grace-seconds", "1", *flags]
    return ManagedProcess(name, argv, log=folder / f"{name}.log", ready=lambda: _serves(address))


async def _publish(publisher: DeploymentPublisher, record: DeploymentRecord) -> None:
    while True:
        await publisher.publish(record)
        await asyncio.sleep(10)


async def _until_served(address: str) -> None:
    request = ProfileRequest(parent=PARENT, query=Query(prompt=PROMPT))
    async with open_channel(address) as channel, asyncio.timeout(READY_SECONDS):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await ProfilerServiceStub(channel).Profile(request)  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(0.1)


def _serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _processor_seconds(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {name: process.cpu_times().user + process.cpu_times().system for name, process in processes.items()}


async def _commands(redis: RedisClient) -> int:
    return int((await redis.info("stats"))["total_commands_processed"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--watch", choices=list(RUNS), default="tenant", help="one watcher, or queries by name")
    parser.add_argument("--profile", type=Path, help="folder for cProfile statistics of the services")
    arguments = parser.parse_args()
    print(
        json.dumps(
            asyncio.run(measure(arguments.queries, arguments.rounds, arguments.watch, arguments.profile)), indent=2
        )
    )


if __name__ == "__main__":
    main()
