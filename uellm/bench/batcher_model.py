"""Triton's own dynamic batcher before an engine: what Triton does by itself. Written into a repository as `model.py`.

An ordinary (not decoupled) model: the batcher forms a batch of what has come, the engine runs it as one request, and
all answers leave when the last row has ended.
"""

from __future__ import annotations

import json
import time
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
        """Run what the batcher put together as one batch.

        `query` is JSON: `prompt`, `sampling_parameters`; `answer` is JSON: `input_tokens`, `tokens`, `error`, and the
        `seconds` that the batch took.
        """
        queries = [
            json.loads(value)
            for request in requests
            for value in pb_utils.get_input_tensor_by_name(request, "query").as_numpy().ravel()
        ]
        begin = time.monotonic()
        answers = self._run(queries)
        seconds = time.monotonic() - begin
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor("answer", _array([[json.dumps({**answer, "seconds": seconds})]]))]
            )
            for answer in answers
        ]

    def _run(self, queries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = [str(number) for number in range(len(queries))]
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            request_id=uuid.uuid4().hex,
            requested_output_names=["row_id", "token_counts", "input_tokens", "error"],
            inputs=[
                pb_utils.Tensor("row_id", _array(rows)),
                pb_utils.Tensor("text_input", _array([query["prompt"] for query in queries])),
                pb_utils.Tensor(
                    "sampling_parameters", _array([json.dumps(query["sampling_parameters"]) for query in queries])
                ),
            ],
        )
        answers: list[dict[str, Any]] = [{"input_tokens": 0, "tokens": 0, "error": ""} for _ in queries]
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            names = pb_utils.get_output_tensor_by_name(response, "row_id")
            if names is not None:
                _apply(answers, response, names.as_numpy())
        return answers


def _apply(answers: list[dict[str, Any]], response: Any, names: Any) -> None:
    counts, prompts, errors = (
        pb_utils.get_output_tensor_by_name(response, name).as_numpy()
        for name in ("token_counts", "input_tokens", "error")
    )
    for name, count, prompt, error in zip(names, counts, prompts, errors, strict=True):
        answer = answers[int(name)]
        answer["tokens"] += int(count)
        answer["input_tokens"] = int(prompt)
        answer["error"] = error.decode()


def _array(values: Sequence[Any]) -> Any:
    """Of bytes, in the shape of the values."""
    return np.vectorize(str.encode, otypes=[object])(np.array(values, dtype=np.object_))
