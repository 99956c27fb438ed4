"""Another model in the same Triton, asked over the server's own gRPC endpoint.

Not by the Python backend's own calls (BLS): until Triton 2.51 at least, a thread of its stub makes numpy arrays of a
decoupled answer without holding Python's lock, so that processes with other threads crash; and it cannot be cancelled.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from .front import EngineError, Outputs

DEFAULT_PORT = "8001"
ANY_ADDRESS = ("", "0.0.0.0", "[::]")  # noqa: S104  (what a server listens on is not where it is called)
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


def server_address(process: int) -> str:
    """Where a Triton process listens for gRPC, from its command line; raises ValueError if it wants TLS."""
    arguments = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    options = _options(arguments)
    if options.get("--grpc-use-ssl", "false") != "false":
        raise ValueError("Triton's gRPC endpoint asks for TLS: the front reaches its engine without it only")
    address = options.get("--grpc-address", "")
    return f"{'127.0.0.1' if address in ANY_ADDRESS else address}:{options.get('--grpc-port', DEFAULT_PORT)}"


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """`--name=value` and `--name value`; a name alone is true."""
    options: dict[str, str] = {}
    for argument, behind in zip(arguments, [*arguments[1:], "--"], strict=True):
        name, given, value = argument.partition("=")
        if name.startswith("--"):
            options[name] = value if given else "true" if behind.startswith("--") or not behind else behind
    return options


class EngineModel:
    """The engine behind a front. Calls are safe from any thread."""

    def __init__(self, address: str, name: str, outputs: Sequence[str]) -> None:
        """`outputs` are asked for by name."""
        self._name = name
        self._outputs = list(outputs)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address, options=UNLIMITED))

    def __call__(self, request_id: str, tensors: dict[str, Any]) -> Generator[Outputs]:
        """As `Ask`. Closed early it cancels the request."""
        call = self._stub.ModelStreamInfer(iter([self._request(request_id, tensors)]))
        try:
            for answer in call:
                if answer.error_message:
                    raise EngineError(answer.error_message)
                result = InferResult(answer.infer_response)
                outputs = {one.name: result.as_numpy(one.name) for one in answer.infer_response.outputs}
                if outputs:  # the last one may have none
                    yield outputs
        except GeneratorExit:
            call.cancel()
            raise
        except grpc.RpcError as error:
            raise EngineError(f"the engine's answers broke off: {error.details()}") from error
        finally:
            _read_out(call)

    def _request(self, request_id: str, tensors: dict[str, Any]) -> service_pb2.ModelInferRequest:
        request = service_pb2.ModelInferRequest(model_name=self._name, id=request_id)
        for name, value in tensors.items():
            kind = np_to_triton_dtype(value.dtype)
            request.inputs.add(name=name, datatype=kind, shape=value.shape)
            packed = serialize_byte_tensor(value).item() if kind == "BYTES" else value.tobytes()
            request.raw_input_contents.append(packed)
        for name in self._outputs:
            request.outputs.add(name=name)
        return request


def _read_out(call: Any) -> None:
    """To its end: a stream that is cancelled before its last response is read keeps its model from being unloaded."""
    try:
        for _ in call:
            pass
    except grpc.RpcError:
        pass
