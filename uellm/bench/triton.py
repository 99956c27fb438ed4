"""A Triton of the peers' own beside the stack's: the same engine, and models that the dynamic batcher feeds."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from uellm.local.engine import first_on_path
from uellm.local.process import free_port
from uellm.local.triton import EmbeddedTriton, TritonOptions

BATCHER_MODEL = Path(__file__).with_name("batcher_model.py")
LOAD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Batching:
    """Configuration of a dynamic batcher."""

    rows: int
    queue_delay_seconds: float
    """How long it waits for more."""


class PeerTriton:
    """Use it as a context manager: it is started with the engine, and stopped."""

    def __init__(self, folder: Path, engine: Path, backend: str) -> None:
        """`engine` is the folder of the deployed engine in the stack's repository, which is copied."""
        self.engine = engine.name
        self._repository = folder / "models"
        self._source = engine
        options = TritonOptions(self._repository, folder / "triton", free_port(), first_on_path=first_on_path(backend))
        self._server = EmbeddedTriton(options)

    @property
    def address(self) -> str:
        """`host:port`."""
        return self._server.address

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._server.process.pid or 0

    def __enter__(self) -> PeerTriton:
        shutil.copytree(self._source, self._repository / self.engine)
        try:
            self._server.start()
            self._server.wait_ready()
            self._load(self.engine)
        except BaseException:
            self._server.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()

    def batch(self, peer: str, batching: Batching) -> str:
        """Have a model feed the engine with these batches; returns its name.

        Each configuration has a model of its own: one that is loaded is never changed under its name, since its process
        would end while the next one begins.
        """
        name = f"{peer}--{batching.rows}-{round(1000 * batching.queue_delay_seconds)}ms"
        folder = self._repository / name
        if not folder.exists():
            (folder / "1").mkdir(parents=True)
            shutil.copyfile(BATCHER_MODEL, folder / "1" / "model.py")
            (folder / "config.pbtxt").write_text(str(_config(name, self.engine, batching)))
            self._load(name)
        return name

    def _load(self, name: str) -> None:
        with grpc.insecure_channel(self.address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.RepositoryModelLoadRequest(model_name=name)
            stub.RepositoryModelLoad(
                request, metadata=tuple(self._server.control_metadata.items()), timeout=LOAD_SECONDS
            )


def _config(name: str, engine: str, batching: Batching) -> Any:
    model = model_config_pb2.ModelConfig(name=name, backend="python", max_batch_size=batching.rows)
    model.input.add(name="query", data_type=model_config_pb2.TYPE_STRING, dims=[1])
    model.output.add(name="answer", data_type=model_config_pb2.TYPE_STRING, dims=[1])
    model.dynamic_batching.max_queue_delay_microseconds = round(1e6 * batching.queue_delay_seconds)
    model.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_CPU, count=1)
    model.parameters["engine"].string_value = engine
    return model
