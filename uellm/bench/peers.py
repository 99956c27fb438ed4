"""Peers on the same engine: Triton driven directly, without a scheduler of ours."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from uellm.bench.records import Record
from uellm.bench.runs import Clock
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, GenerationParameters

BATCHER, DIRECT, MORPHLING = "dynamic-batcher", "engine-directly", "morphling"
PEERS = (BATCHER, DIRECT, MORPHLING)


@dataclass(frozen=True, slots=True)
class Batched:
    """A model that Triton's dynamic batcher feeds; the answer comes when its whole batch has ended."""

    client: InferenceServerClient
    model: str
    defaults: GenerationParameters

    async def ask(self, record: Record, clock: Clock) -> None:
        """One request."""
        body = {"prompt": record.planned.prompt, "sampling_parameters": _sampling(record, self.defaults)}
        try:
            result = await self.client.infer(self.model, [_text("query", [1, 1], json.dumps(body))])
        except InferenceServerException as error:
            record.failed(str(error.message()))
            return
        answer = json.loads(result.as_numpy("answer")[0, 0])
        if answer["error"]:
            record.failed(answer["error"])
            return
        record.first_token = record.finished = clock()
        record.dispatched = record.finished - answer["seconds"]
        record.prompt_tokens, record.output_tokens = answer["input_tokens"], answer["tokens"]
        record.state = QUERY_STATE_COMPLETED


@dataclass(frozen=True, slots=True)
class Direct:
    """An engine with its own queue, first come, first served."""

    client: InferenceServerClient
    model: str
    defaults: GenerationParameters
    room: asyncio.Semaphore | None = None
    """Of requests that it has at once; None: as many as come."""

    async def ask(self, record: Record, clock: Clock) -> None:
        """One request, a batch of one row."""
        if self.room is None:
            await self._ask(record, clock)
            return
        async with self.room:
            record.dispatched = clock()
            await self._ask(record, clock)

    async def _ask(self, record: Record, clock: Clock) -> None:
        sampling = json.dumps(_sampling(record, self.defaults))
        fields = {"row_id": "0", "text_input": record.planned.prompt, "sampling_parameters": sampling}
        request = {
            "model_name": self.model,
            "inputs": [_text(name, [1], value) for name, value in fields.items()],
            "request_id": uuid.uuid4().hex,
            "parameters": {"action": "generate"},
        }

        async def one() -> AsyncIterator[dict[str, Any]]:
            yield request

        try:
            async for result, error in self.client.stream_infer(one()):
                if error is not None:
                    record.failed(str(error.message()))
                    return
                _take(record, result, clock())
        except InferenceServerException as error:
            record.failed(str(error.message()))
            return
        if not record.reason:
            record.finished, record.state = clock(), QUERY_STATE_COMPLETED


def _take(record: Record, result: Any, now: float) -> None:
    counts = result.as_numpy("token_counts")
    if counts is None or not counts.size:
        return
    record.output_tokens += int(counts.sum())
    record.prompt_tokens = int(result.as_numpy("input_tokens")[0])
    if record.first_token is None and record.output_tokens:
        record.first_token = now
    if failure := result.as_numpy("error")[0]:
        record.failed(failure.decode())


def _sampling(record: Record, defaults: GenerationParameters) -> dict[str, Any]:
    """As the profiler fills in what a query leaves open."""
    chosen = {"max_tokens": record.planned.max_output_tokens, "temperature": defaults.temperature}
    if defaults.HasField("repetition_penalty"):
        chosen["repetition_penalty"] = defaults.repetition_penalty
    return chosen


def _text(name: str, shape: list[int], value: str) -> InferInput:
    tensor = InferInput(name, shape, "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_).reshape(shape))
    return tensor
