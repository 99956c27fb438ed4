"""The way to Triton's Python backend: reads requests, hands them to an engine, sends what it reports."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils

from .job import Sink
from .request import BadRow, PromptEncoder, RequestError, Row, decode_strings, parse_rows
from .rows import RowDelta

PARENT_LOOK_SECONDS = 1.0


class Engine(Protocol):
    """What requests are handed to. The methods do not block."""

    def submit(self, batch_id: str, rows: Sequence[Row | BadRow], sink: Sink, fence: tuple[str, int]) -> None:
        """Take a batch; raises RequestError."""

    def cancel(self, batch_id: str, row_ids: Collection[str]) -> list[str]:
        """Cancel rows of a batch (none named: all); returns those that will end as cancelled."""

    def fence(self, scope: str, epoch: int) -> None:
        """Note an epoch; raises RequestError if a higher one was seen."""

    def describe(self) -> dict[str, Any]:
        """The answer to the describe action."""

    def close(self) -> None:
        """End; rows that have not ended end as errors."""


def _strings(name: str, values: Sequence[str]) -> Any:
    return pb_utils.Tensor(name, np.array([value.encode() for value in values], dtype=np.object_))


def _integers(name: str, values: Sequence[int]) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=np.int32))


class TritonSink:
    """Sends a batch's news as responses of its request."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, deltas: Sequence[RowDelta], step_aggregates: str | None) -> None:
        """One response; the output tensors are those of the protocol."""
        tensors = [
            _strings("row_id", [delta.row_id for delta in deltas]),
            _strings("text_output", [delta.text for delta in deltas]),
            _integers("token_ids", [token for delta in deltas for token in delta.token_ids]),
            _integers("token_counts", [len(delta.token_ids) for delta in deltas]),
            _integers("first_token_index", [delta.first_token_index for delta in deltas]),
            _strings("finish_reason", [delta.finish_reason for delta in deltas]),
            _strings("error", [delta.error for delta in deltas]),
            _integers("input_tokens", [delta.input_tokens for delta in deltas]),
        ]
        if step_aggregates is not None:
            tensors.append(_strings("step_aggregates", [step_aggregates]))
        self._sender.send(pb_utils.InferenceResponse(output_tensors=tensors))

    def close(self) -> None:
        """The empty final response."""
        self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Whether the stream was cancelled."""
        return bool(self._sender.is_cancelled())


class TritonModel(ABC):
    """A decoupled model, one instance per stub process."""

    @abstractmethod
    def load(self, parameters: dict[str, str]) -> tuple[PromptEncoder, Engine]:
        """Load the model named by the config's parameters."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once, before any request."""
        faulthandler.enable()  # a crash of the process says in Triton's log where it was
        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        declared = json.loads(args["model_config"]).get("parameters", {})
        self._encoder, self._engine = self.load({key: value["string_value"] for key, value in declared.items()})

    def execute(self, requests: list[Any]) -> None:
        """Read each request (its inputs are gone afterwards) and hand it over; answers come from the engine."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._handle(request, sender)
            except RequestError as error:
                self._refuse(sender, str(error))
            except Exception as error:
                logging.exception("request failed")
                self._refuse(sender, f"{type(error).__name__}: {error}")

    def finalize(self) -> None:
        """Called by Triton when the model is unloaded."""
        self._engine.close()

    def _handle(self, request: Any, sender: Any) -> None:
        parameters = json.loads(request.parameters() or "{}")
        scope, epoch = _fence(parameters)
        if scope:
            self._engine.fence(scope, epoch)
        inputs = _read(request)
        action = parameters.get("action", "generate")
        if action == "generate":
            rows = parse_rows(inputs, self._encoder)
            self._engine.submit(request.request_id(), rows, TritonSink(sender), (scope, epoch))
        elif action == "cancel":
            cancelled = self._engine.cancel(_batch_id(inputs), _names(inputs, "cancel_row_id"))
            self._answer(sender, _strings("row_id", cancelled))
        elif action == "describe":
            self._answer(sender, _strings("step_aggregates", [json.dumps(self._engine.describe())]))
        else:
            raise RequestError(f"parameter action is {action!r}; known: generate, cancel, describe")

    @staticmethod
    def _answer(sender: Any, tensor: Any) -> None:
        sender.send(
            pb_utils.InferenceResponse(output_tensors=[tensor]),
            flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )

    @staticmethod
    def _refuse(sender: Any, message: str) -> None:
        error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
        sender.send(pb_utils.InferenceResponse(error=error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _end_with_parent(parent: int) -> None:
    """End this process when the server was killed: a stub does not notice, and would keep the model's memory."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_SECONDS)
    os._exit(1)


def _read(request: Any) -> dict[str, Any]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _fence(parameters: dict[str, Any]) -> tuple[str, int]:
    scope, epoch = parameters.get("fence_scope", ""), parameters.get("fence_epoch", 0)
    if not isinstance(scope, str) or not isinstance(epoch, int):
        raise RequestError("fence_scope must be a string and fence_epoch an int64")
    return scope, epoch


def _names(inputs: dict[str, Any], name: str) -> list[str]:
    return decode_strings(name, inputs[name]) if name in inputs else []


def _batch_id(inputs: dict[str, Any]) -> str:
    names = _names(inputs, "batch_id")
    if len(names) != 1:
        raise RequestError(f"batch_id has {len(names)} elements; a cancellation names one batch")
    return names[0]
