"""Triton's own dynamic batcher before the static engine: what Triton does by itself with the same engine.

An ordinary (not decoupled) model: the batcher forms a batch of what has come, the engine runs it as one request, and
all answers leave when the last row has ended.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Loaded by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Remember the engine."""
        self._engine = json.loads(args["model_config"])["parameters"]["engine"]["string_value"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run what the batcher put together as one batch. `query` is JSON: `prompt` and `sampling_parameters`."""
        queries = [
            json.loads(value)
            for request in requests
            for value in pb_utils.get_input_tensor_by_name(request, "query").as_numpy().ravel()
        ]
        tokens = self._run(queries)
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("tokens", np.array([[count]], dtype=np.int32))])
            for count in tokens
        ]

    def _run(self, queries: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens of each answer."""
        rows = [str(number) for number in range(len(queries))]
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            request_id=uuid.uuid4().hex,
            requested_output_names=["row_id", "token_counts"],
            inputs=[
                _strings("row_id", rows),
                _strings("text_input", [query["prompt"] for query in queries]),
                _strings("sampling_parameters", [json.dumps(query["sampling_parameters"]) for query in queries]),
            ],
        )
        tokens = [0] * len(queries)
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            names = pb_utils.get_output_tensor_by_name(response, "row_id")
            if names is None:
                continue
            counts = pb_utils.get_output_tensor_by_name(response, "token_counts").as_numpy()
            for name, count in zip(names.as_numpy(), counts, strict=True):
                tokens[int(name)] += int(count)
        return tokens


def _strings(name: str, values: Sequence[str]) -> Any:
    return pb_utils.Tensor(name, np.array([value.encode() for value in values], dtype=np.object_))
