"""Engines on Triton, by the engine protocol (docs/engine-protocol.md)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from tritonclient.grpc import InferInput, InferResult
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from uellm.v1.stream_pb2 import DecodeAggregate, DeploymentRecord, PrefillAggregate, QueryRecord, StepAggregates

from ..app.effects import EngineRow, RunBatch
from ..app.events import EngineNews, RowNews
from ..app.ports import EngineError

CONTROL_TIMEOUT_SECONDS = 10.0
SILENCE_SECONDS = 2.0
"""A batch that says nothing for this long is asked after."""
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


class TritonEngines:
    """All engines that this process talks to; one channel per Triton endpoint."""

    def __init__(self) -> None:
        self._clients: dict[str, InferenceServerClient] = {}

    async def run(self, batch: RunBatch, fence_epoch: int) -> AsyncGenerator[EngineNews, None]:
        """Run a batch; yields what it produces until the engine has nothing more to say.

        Closing the iterator cancels the RPC, which ends the batch.

        Raises:
            EngineError: the engine refused the batch, or was lost.
        """
        record = batch.deployment
        parameters = {"action": "generate", "fence_scope": record.model, "fence_epoch": fence_epoch}
        request = {
            "model_name": record.triton_model,
            "inputs": batch_inputs(batch.rows),
            "request_id": batch.batch_id,
            "parameters": parameters,
        }
        call = self._client(record).stream_infer(_one(request))
        refusal = ""
        try:
            # To the end even after an error: Triton can lose track of a request whose stream is cancelled.
            async with aclosing(self._heard(call, record, batch.batch_id)) as answers:
                async for result, error in answers:
                    if error is not None:
                        refusal = str(error.message())
                    elif result is not None and result.as_numpy("row_id") is not None:
                        yield news_of(batch.batch_id, result)
        except (InferenceServerException, grpc.RpcError) as error:
            raise EngineError(_reason(error)) from error
        finally:
            call.cancel()
        if refusal:
            raise EngineError(refusal)

    async def cancel(self, deployment: DeploymentRecord, batch_id: str, names: Sequence[str]) -> None:
        """Ask the engine to end rows of a batch.

        Raises:
            EngineError: the engine does not answer.
        """
        request = {
            "model_name": deployment.triton_model,
            "inputs": [_strings("batch_id", [batch_id]), _strings("cancel_row_id", names)],
            "parameters": {"action": "cancel"},
        }
        try:
            await self._control(deployment, request)
        except TimeoutError as error:
            raise EngineError("the engine does not answer in time") from error

    async def ready(self, deployment: DeploymentRecord) -> bool:
        """Whether the engine itself answers: Triton calls a model ready whose process has ended."""
        try:
            await self._describe(deployment)
        except (EngineError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close all channels."""
        for client in self._clients.values():
            await client.close()

    async def _heard(
        self, call: AsyncIterator[tuple[Any, Any]], deployment: DeploymentRecord, batch_id: str
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """What a batch's call yields; asked after when it is silent, since Triton does not end it if its process ends.

        Raises:
            EngineError: the engine does not know the batch any more, or is gone.
        """
        missed = 0
        while True:
            coming = asyncio.ensure_future(anext(call))
            try:
                while not (await asyncio.wait({coming}, timeout=SILENCE_SECONDS))[0]:
                    missed = 0 if await self._knows(deployment, batch_id) else missed + 1
                    if missed > 1:  # else its end may have been on the way
                        raise EngineError("the engine has lost the batch")
                yield coming.result()
            except StopAsyncIteration:
                return
            finally:
                coming.cancel()

    async def _knows(self, deployment: DeploymentRecord, batch_id: str) -> bool:
        """Whether the engine still has a batch; True if it is too busy to say, or does not tell its batches."""
        try:
            description = await self._describe(deployment)
        except TimeoutError:
            return True
        except EngineError:
            return False
        return batch_id in description.get("batch_ids", [batch_id])

    async def _describe(self, deployment: DeploymentRecord) -> dict[str, Any]:
        """The engine's description of itself.

        Raises:
            EngineError: it has none to give.
            TimeoutError: it does not answer in time.
        """
        request = {"model_name": deployment.triton_model, "inputs": [], "parameters": {"action": "describe"}}
        for result in await self._control(deployment, request):
            description = result.as_numpy("step_aggregates")
            if description is not None and description.size:
                return dict(json.loads(description[0]))
        raise EngineError("the engine does not describe itself")

    async def _control(self, deployment: DeploymentRecord, request: dict[str, Any]) -> list[InferResult]:
        """The answers to a request that is no batch; raises EngineError, TimeoutError."""
        call = self._client(deployment).stream_infer(_one(request), stream_timeout=CONTROL_TIMEOUT_SECONDS)
        try:
            answers = [answer async for answer in call]
        except (InferenceServerException, grpc.RpcError) as error:
            if "DEADLINE_EXCEEDED" in _code(error):
                raise TimeoutError from error
            raise EngineError(_reason(error)) from error
        for _, refusal in answers:
            if refusal is not None:
                raise EngineError(str(refusal.message()))
        return [result for result, _ in answers if result is not None]

    def _client(self, deployment: DeploymentRecord) -> InferenceServerClient:
        endpoint = deployment.triton_endpoint
        if endpoint not in self._clients:
            self._clients[endpoint] = InferenceServerClient(endpoint, channel_args=KEEPALIVE)
        return self._clients[endpoint]


def batch_inputs(rows: Sequence[EngineRow]) -> list[InferInput]:
    """The input tensors of a batch."""
    prompts = [list(row.record.prompt_token_ids.ids) for row in rows]
    resumes = [list(row.resume_token_ids) for row in rows]
    return [
        _strings("row_id", [row.name for row in rows]),
        _integers("prompt_token_ids", [token for prompt in prompts for token in prompt]),
        _integers("prompt_lengths", [len(prompt) for prompt in prompts]),
        _integers("resume_token_ids", [token for resume in resumes for token in resume]),
        _integers("resume_lengths", [len(resume) for resume in resumes]),
        _strings("sampling_parameters", [json.dumps(sampling_parameters(row.record)) for row in rows]),
    ]


def sampling_parameters(record: QueryRecord) -> dict[str, Any]:
    """A query's generation parameters in the engine's words."""
    generation = record.query.generation
    known: dict[str, Any] = {
        "max_tokens": generation.max_output_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "repetition_penalty": generation.repetition_penalty,
        "seed": generation.seed,
        "stop": list(generation.stop),
    }
    return {**_plain(MessageToDict(record.query.engine_parameters)), **known}


def news_of(batch_id: str, result: InferResult) -> EngineNews:
    """One response of the engine."""
    names, texts = result.as_numpy("row_id"), result.as_numpy("text_output")
    reasons, errors = result.as_numpy("finish_reason"), result.as_numpy("error")
    first, counts, tokens = (result.as_numpy(name) for name in ("first_token_index", "token_counts", "token_ids"))
    pieces = np.split(tokens, np.cumsum(counts)[:-1])
    rows = tuple(
        RowNews(
            name=names[row].decode(),
            first_token_index=int(first[row]),
            token_ids=tuple(pieces[row].tolist()),
            text=texts[row].decode(),
            finish_reason=reasons[row].decode(),
            error=errors[row].decode(),
        )
        for row in range(len(names))
    )
    aggregates = result.as_numpy("step_aggregates")
    if aggregates is None or not aggregates.size:
        return EngineNews(batch_id, rows)
    return EngineNews(batch_id, rows, aggregates_of(json.loads(aggregates[0])))


def aggregates_of(measured: dict[str, Any]) -> StepAggregates:
    """What a batch cost, from the engine's JSON."""
    return StepAggregates(
        prefill=[PrefillAggregate(**run) for run in measured["prefill"]],
        decode=[DecodeAggregate(**run) for run in measured["decode"]],
        total_seconds=measured["seconds"],
    )


def _plain(value: Any) -> Any:
    """A Struct's numbers are all floats: whole ones become integers again."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def _one(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield request


def _strings(name: str, values: Sequence[str]) -> InferInput:
    return _tensor(name, np.array([value.encode() for value in values], dtype=np.object_))


def _integers(name: str, values: Sequence[int]) -> InferInput:
    return _tensor(name, np.array(values, dtype=np.int32))


def _tensor(name: str, values: NDArray[Any]) -> InferInput:
    tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    return tensor


def _code(error: Exception) -> str:
    code = error.status() if isinstance(error, InferenceServerException) else getattr(error, "code", str)()
    return str(code)


def _reason(error: Exception) -> str:
    if isinstance(error, InferenceServerException):
        return str(error.message())
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or type(error).__name__
