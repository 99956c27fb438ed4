"""Peers on the same engines: Triton driven directly, without a scheduler of ours."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from runs import Answer
from tritonclient.grpc import InferInput, model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException
from workload import Arrival

from tests.support.triton import load, start_triton, write_static_engine

ENGINE, BATCHER, DIRECT = "engine", "dynamic-batcher", "engine-directly"
QUEUE_DELAY_MICROSECONDS = 100_000
"""How long Triton waits for more; a step of the engine takes about as long."""


@contextlib.contextmanager
def triton_batcher(folder: Path, weights: Path, rows: int) -> Iterator[str]:
    """A Triton with the static engine and a dynamically batched model before it; yields its address."""
    server = start_triton(folder)
    try:
        write_static_engine(folder / "models", ENGINE, weights)
        _write_batcher(folder / "models", rows)
        load(server, ENGINE)
        load(server, BATCHER)
        yield server.address
    finally:
        server.stop()


async def ask_batcher(client: InferenceServerClient, arrival: Arrival, answer: Answer, begin: float) -> None:
    """One request; the answer comes when its whole batch has ended."""
    query = InferInput("query", [1, 1], "BYTES")
    body = json.dumps({"prompt": arrival.prompt, "sampling_parameters": _sampling(arrival)})
    query.set_data_from_numpy(np.array([[body.encode()]], dtype=np.object_))
    try:
        result = await client.infer(BATCHER, [query])
        answer.tokens = int(result.as_numpy("tokens")[0, 0])
    except InferenceServerException as error:
        answer.error = str(error.message())
    answer.first_token = answer.end = time.monotonic() - begin


async def ask_engine(client: InferenceServerClient, model: str, arrival: Arrival, answer: Answer, begin: float) -> None:
    """One request to an engine that batches continuously: its own queue, first come, first served."""
    fields = {"row_id": "0", "text_input": arrival.prompt, "sampling_parameters": json.dumps(_sampling(arrival))}
    request = {
        "model_name": model,
        "inputs": [_text(name, value) for name, value in fields.items()],
        "request_id": uuid.uuid4().hex,
        "parameters": {"action": "generate"},
    }

    async def one() -> AsyncIterator[dict[str, Any]]:
        yield request

    async for result, error in client.stream_infer(one()):
        if error is not None:
            answer.error = str(error.message())
        elif (counts := result.as_numpy("token_counts")) is not None and counts.size:
            answer.tokens += int(counts.sum())
            if answer.first_token is None and answer.tokens:
                answer.first_token = time.monotonic() - begin
    answer.end = time.monotonic() - begin


@contextlib.asynccontextmanager
async def triton_client(address: str) -> AsyncIterator[InferenceServerClient]:
    """A client of that Triton."""
    client = InferenceServerClient(address)
    try:
        yield client
    finally:
        await client.close()


def _sampling(arrival: Arrival) -> dict[str, Any]:
    return {"max_tokens": arrival.max_output_tokens, "temperature": 0.0, "repetition_penalty": 1.15}


def _text(name: str, value: str) -> InferInput:
    tensor = InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def _write_batcher(repository: Path, rows: int) -> None:
    model = model_config_pb2.ModelConfig(name=BATCHER, backend="python", max_batch_size=rows)
    model.input.add(name="query", data_type=model_config_pb2.TYPE_STRING, dims=[1])
    model.output.add(name="tokens", data_type=model_config_pb2.TYPE_INT32, dims=[1])
    model.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_MICROSECONDS
    model.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    model.parameters["engine"].string_value = ENGINE
    folder = repository / BATCHER / "1"
    folder.mkdir(parents=True)
    source = Path(__file__).parent / "dynamic_batcher" / "model.py"
    (folder / "model.py").write_bytes(source.read_bytes())
    (repository / BATCHER / "config.pbtxt").write_text(str(model))
