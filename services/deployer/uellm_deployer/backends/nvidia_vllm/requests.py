"""A row in the tensors of NVIDIA's vLLM backend, and its answers as tokens."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np

from ..common.front import EngineError, Outputs
from ..common.rows import LiveRow
from ..common.vllm_sampling import sampling_arguments

_TRUE = np.array([True])
_GOES_ON, _ENDED = "None", ("stop", "length")


def row_tensors(text: str, row: LiveRow, end_tokens: Collection[int]) -> dict[str, Any]:
    """What is left of a row whose tokens up to here are spelled `text`, by input."""
    sampling = sampling_arguments(row, end_tokens) | {"logprobs": 0}  # of the drawn token only: it is told with its id
    if row.row.sampling.stop:  # found in the tokens here too; but so the engine ends in time by itself
        sampling |= {"stop": list(row.row.sampling.stop), "detokenize": True}
    return {
        "text_input": _text(text),
        "sampling_parameters": _text(json.dumps(sampling)),
        "stream": _TRUE,
        "exclude_input_in_output": _TRUE,
        "return_finish_reason": _TRUE,
        "return_logprobs": _TRUE,
        "return_num_input_tokens": _TRUE,
        "return_num_output_tokens": _TRUE,
    }


def new_tokens(outputs: Outputs, read: int) -> list[int]:
    """Ids of the tokens that a response brings.

    Raises EngineError if they are not told, if the engine has read another number of tokens than `read`, or has given
    the row up.
    """
    found = int(outputs["num_input_tokens"].reshape(-1)[0])
    if found != read:
        raise EngineError(f"vLLM has read {found} tokens where {read} were meant: its tokenizer is not the model's")
    reason = outputs["finish_reason"].reshape(-1)[0].decode()
    if reason not in (_GOES_ON, *_ENDED):
        raise EngineError(f"vLLM has ended the row: {reason}")
    # One object a token; of its keys the drawn token's id is the first.
    told = [int(next(iter(one))) for one in json.loads(outputs["logprobs"].reshape(-1)[0]) or ()]
    count = int(outputs["num_output_tokens"].reshape(-1)[0])
    if len(told) != count:
        raise EngineError(f"vLLM has drawn {count} tokens and told the ids of {len(told)}")
    return told


def _text(value: str) -> Any:
    return np.array([value.encode()], dtype=np.object_)
