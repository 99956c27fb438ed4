"""Pieces for tests against the embedded Triton: a server, a static engine in its repository, a client."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from uellm_deployer.backends import backend_files
from uellm_deployer.backends.common import contract

from uellm.local.engine import first_on_path
from uellm.local.process import free_port
from uellm.local.triton import EmbeddedTriton, TritonOptions

TIMEOUT_SECONDS = 60.0


def start_triton(folder: Path, backend: str = "hf", added: Mapping[str, Path] | None = None) -> EmbeddedTriton:
    """Start an embedded Triton whose repository and state lie in `folder`, and wait until it is ready.

    `added` are backends in Python, by name.
    """
    server = EmbeddedTriton(
        TritonOptions(
            repository=folder / "models",
            state=folder / "state",
            grpc_port=free_port(),
            first_on_path=first_on_path(backend),
        )
    )
    if added:
        _add_backends(server, added)
    server.start()
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def _add_backends(server: EmbeddedTriton, added: Mapping[str, Path]) -> None:
    """Beside Triton's own; a backend in Python runs on the Python backend, which must not be a link then."""
    assert not server.process.running
    backends = server.options.state / "backends"
    for link in (backends / "python").iterdir():
        source = link.resolve()
        link.unlink()
        shutil.copy2(source, link)
    for name, model in added.items():
        (backends / name).mkdir()
        shutil.copy2(model, backends / name / "model.py")


def write_static_engine(repository: Path, name: str, weights: Path, **parameters: str) -> None:
    """Put a static engine for these weights into a repository, version 1."""
    write_engine(repository, name, "hf", {contract.WEIGHTS: str(weights), contract.THREADS: "2", **parameters})


def write_engine(repository: Path, name: str, backend: str, parameters: Mapping[str, str]) -> None:
    """Put an engine with these parameters of its config into a repository, version 1."""
    model = model_config_pb2.ModelConfig(name=name, backend=contract.BACKEND, max_batch_size=0)
    for declared in contract.INPUTS:
        model.input.add(
            name=declared.name,
            data_type=model_config_pb2.DataType.Value(declared.data_type),
            dims=declared.dims,
            optional=True,
        )
    for declared in contract.OUTPUTS:
        model.output.add(
            name=declared.name, data_type=model_config_pb2.DataType.Value(declared.data_type), dims=declared.dims
        )
    model.model_transaction_policy.decoupled = True
    model.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    for key, value in parameters.items():
        model.parameters[key].string_value = value
    for relative, source in backend_files(backend).items():
        target = repository / name / "1" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (repository / name / "config.pbtxt").write_text(str(model))


@dataclass
class RowAnswer:
    """What a row has received so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    input_tokens: int = 0


class Call:
    """One request to a decoupled model on a stream of its own, half-closed behind it (docs/engine-protocol.md)."""

    def __init__(self, server: EmbeddedTriton, request: service_pb2.ModelInferRequest) -> None:
        """Sends the request; `next` applies one response."""
        self.rows: dict[str, RowAnswer] = {}
        self.named: list[str] = []  # row ids of the answer to a cancellation
        self.aggregates: dict[str, Any] = {}
        self.refusal = ""
        self.responses = 0
        self.done = False
        self._channel = grpc.insecure_channel(server.address)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._stream = stub.ModelStreamInfer(iter([request]), timeout=TIMEOUT_SECONDS)

    def next(self) -> None:
        """Wait for a response and apply it."""
        response = next(self._stream)
        inner = response.infer_response
        self.done = bool(response.error_message) or inner.parameters["triton_final_response"].bool_param
        self.refusal = response.error_message
        if inner.outputs:
            self._apply(triton.InferResult(inner))
        if self.done:
            # Closing before the status has come would cancel the RPC.
            assert next(self._stream, None) is None, "something followed the final response"
            self._channel.close()

    def finish(self) -> Call:
        """Apply responses until the final one."""
        while not self.done:
            self.next()
        return self

    def cancel_rpc(self) -> None:
        """Cancel the stream."""
        self._stream.cancel()
        self._channel.close()
        self.done = True

    def _apply(self, result: triton.InferResult) -> None:
        self.responses += 1
        if (aggregates := result.as_numpy("step_aggregates")) is not None:
            assert not self.aggregates, "step_aggregates came twice"
            self.aggregates = json.loads(aggregates[0])
        if (counts := result.as_numpy("token_counts")) is None:
            names = result.as_numpy("row_id")
            self.named = [] if names is None else [name.decode() for name in names]
            return
        tokens = np.split(result.as_numpy("token_ids"), np.cumsum(counts)[:-1])
        for i, row_id in enumerate(result.as_numpy("row_id")):
            row = self.rows.setdefault(row_id.decode(), RowAnswer())
            assert not row.finish_reason, "a row that has ended got news"
            first = int(result.as_numpy("first_token_index")[i])
            row.indices += range(first, first + int(counts[i]))
            row.tokens += tokens[i].tolist()
            row.text += result.as_numpy("text_output")[i].decode()
            row.finish_reason = result.as_numpy("finish_reason")[i].decode()
            row.error = result.as_numpy("error")[i].decode()
            row.input_tokens = int(result.as_numpy("input_tokens")[i])


Rows = Mapping[str, Mapping[str, Any]]


class StaticEngineClient:
    """Speaks the engine protocol to one model of a server."""

    def __init__(self, server: EmbeddedTriton, model: str) -> None:
        """`model` is the Triton model's name."""
        self._server = server
        self._model = model

    def start(self, batch_id: str, rows: Rows, **parameters: str | int) -> Call:
        """Send a batch; a row is its sampling parameters plus `prompt` (text or ids) and maybe `resume` (ids)."""
        return self.call(batch_id, generate_inputs(rows), **parameters)

    def run(self, rows: Rows, batch_id: str = "batch") -> Call:
        """Send a batch and wait for its end."""
        return self.start(batch_id, rows).finish()

    def cancel(self, batch_id: str, row_ids: Sequence[str] = (), **parameters: str | int) -> list[str]:
        """Cancel rows; returns those that will end as cancelled."""
        inputs = [strings("batch_id", [batch_id]), strings("cancel_row_id", row_ids)]
        return self.call("cancel", inputs, action="cancel", **parameters).finish().named

    def describe(self) -> dict[str, Any]:
        """The describe action."""
        return self.call("describe", [], action="describe").finish().aggregates

    def call(self, request_id: str, inputs: Sequence[triton.InferInput], **parameters: str | int) -> Call:
        """Send a request."""
        request = service_pb2.ModelInferRequest(model_name=self._model, id=request_id)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for key, value in parameters.items():
            if isinstance(value, str):
                request.parameters[key].string_param = value
            else:
                request.parameters[key].int64_param = value
        for tensor in inputs:
            request.inputs.append(tensor._get_tensor())
            request.raw_input_contents.append(tensor._get_content() or b"")
        return Call(self._server, request)


def strings(name: str, values: Sequence[str]) -> triton.InferInput:
    """A BYTES tensor."""
    tensor = triton.InferInput(name, [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode() for value in values], dtype=np.object_))
    return tensor


def integers(name: str, values: Sequence[int]) -> triton.InferInput:
    """An INT32 tensor."""
    tensor = triton.InferInput(name, [len(values)], "INT32")
    tensor.set_data_from_numpy(np.array(values, dtype=np.int32))
    return tensor


def generate_inputs(rows: Rows) -> list[triton.InferInput]:
    """The tensors of a generate request."""
    values = list(rows.values())
    prompts = [row["prompt"] for row in values]
    ids = [[] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    resumes = [list(row.get("resume", ())) for row in values]
    sampling = [{k: v for k, v in row.items() if k not in ("prompt", "resume")} for row in values]
    return [
        strings("row_id", list(rows)),
        strings("text_input", [prompt if isinstance(prompt, str) else "" for prompt in prompts]),
        strings("sampling_parameters", [json.dumps(item) for item in sampling]),
        integers("prompt_token_ids", [token for row in ids for token in row]),
        integers("prompt_lengths", [len(row) for row in ids]),
        integers("resume_token_ids", [token for row in resumes for token in row]),
        integers("resume_lengths", [len(row) for row in resumes]),
    ]


def control_call(server: EmbeddedTriton, method: str, request: Any, seconds: float = TIMEOUT_SECONDS) -> Any:
    """Call a restricted RPC of the server with its secret."""
    with grpc.insecure_channel(server.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return getattr(stub, method)(request, metadata=tuple(server.control_metadata.items()), timeout=seconds)


def load(server: EmbeddedTriton, name: str, seconds: float = TIMEOUT_SECONDS) -> None:
    """Load a model and wait until it is ready."""
    control_call(server, "RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=name), seconds)


def unload(server: EmbeddedTriton, name: str) -> None:
    """Ask for a model to be unloaded; returns before it is."""
    control_call(server, "RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=name))


def state(server: EmbeddedTriton, name: str) -> str:
    """The model's state in the repository index."""
    index = control_call(server, "RepositoryIndex", service_pb2.RepositoryIndexRequest())
    return next((entry.state for entry in index.models if entry.name == name), "")
