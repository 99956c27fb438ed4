"""First inferences, and the engine's description of itself (docs/engine-protocol.md)."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc

from uellm.rpc.errors import FailedPreconditionError

_PROMPT = "Once upon a time"
_TOKENS = 8


async def infer(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str, limit_seconds: float) -> float:
    """Generate a few tokens for one row; returns the seconds of a decode step, 0 if the engine does not tell.

    Raises FailedPreconditionError if there is no proper answer.
    """
    sampling = {"max_tokens": _TOKENS, "raw_prompt": True, "ignore_eos": True}
    request = _request(model, {"row_id": "0", "text_input": _PROMPT, "sampling_parameters": json.dumps(sampling)}, "")
    tokens, finish, aggregates = 0, "", "{}"
    for result in await _call(stub, request, limit_seconds):
        tokens += int(result.as_numpy("token_counts").sum())
        finish = "".join(_texts(result, "finish_reason")) or finish
        aggregates = "".join(_texts(result, "step_aggregates")) or aggregates
        if finish == "error":
            raise _wrong(model, f"the first inference failed: {''.join(_texts(result, 'error'))}")
    if tokens != _TOKENS or finish != "length":
        raise _wrong(model, f"the first inference gave {tokens} of {_TOKENS} tokens and ended as {finish or 'nothing'}")
    decode = json.loads(aggregates).get("decode", [])
    steps = sum(run["steps"] for run in decode)
    return sum(run["seconds"] for run in decode) / steps if steps else 0.0


async def describe(stub: service_pb2_grpc.GRPCInferenceServiceStub, model: str, limit_seconds: float) -> dict[str, Any]:
    """The answer to the action `describe`."""
    for result in await _call(stub, _request(model, {}, "describe"), limit_seconds):
        description = json.loads("".join(_texts(result, "step_aggregates")))
        if isinstance(description, dict):
            return description
    raise _wrong(model, "it does not describe itself")


def _request(model: str, rows: Mapping[str, str], action: str) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=uuid.uuid4().hex)
    for name, value in rows.items():
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(value.encode())
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    if action:
        request.parameters["action"].string_param = action
    return request


async def _call(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, request: service_pb2.ModelInferRequest, limit_seconds: float
) -> list[InferResult]:
    """The responses that carry something.

    The call is half-closed and read to its very end, never cancelled: a call that is cancelled just when it ends can
    leave Triton (seen with 2.51) with a request that it never lets go of, so that the model never unloads.
    """

    async def requests() -> AsyncIterator[service_pb2.ModelInferRequest]:
        yield request

    responses = [response async for response in stub.ModelStreamInfer(requests(), timeout=limit_seconds)]
    for response in responses:
        if response.error_message:
            raise _wrong(request.model_name, response.error_message)
    return [InferResult(response.infer_response) for response in responses if response.infer_response.outputs]


def _texts(result: InferResult, name: str) -> list[str]:
    values = result.as_numpy(name)
    return [] if values is None else [value.decode() for value in values]


def _wrong(model: str, message: str) -> FailedPreconditionError:
    return FailedPreconditionError(model, f"{model}: {message}", reason="ENGINE_ERROR")
