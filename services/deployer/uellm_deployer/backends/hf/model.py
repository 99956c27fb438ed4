"""Triton glue of the static engine: reads requests, hands them to the engine, sends what it reports."""

from __future__ import annotations

import json
import locale
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# The embedded interpreter starts in ASCII; torch and transformers are imported after this, in `initialize`.
locale.setlocale(locale.LC_ALL, "C.UTF-8")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from uellm_hf.request import RequestError, decode_strings, parse_rows  # noqa: E402

if TYPE_CHECKING:
    from uellm_hf.rows import RowDelta

PARENT_LOOK_SECONDS = 1.0


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


class TritonPythonModel:
    """Loaded by Triton's Python backend, one instance per stub process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model named by the config's parameters."""
        from uellm_hf.engine import Engine
        from uellm_hf.language_model import LanguageModel, LoadOptions

        logging.basicConfig(stream=sys.stderr, level=logging.INFO)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        declared = json.loads(args["model_config"]).get("parameters", {})
        parameters = {key: value["string_value"] for key, value in declared.items()}
        self._model = LanguageModel.load(LoadOptions.from_parameters(parameters))
        self._engine = Engine(self._model)

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
        """Stop the generation thread."""
        self._engine.close()

    def _handle(self, request: Any, sender: Any) -> None:
        parameters = json.loads(request.parameters() or "{}")
        scope, epoch = _fence(parameters)
        if scope:
            self._engine.fence(scope, epoch)
        inputs = _read(request)
        action = parameters.get("action", "generate")
        if action == "generate":
            rows = parse_rows(inputs, self._model)
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
