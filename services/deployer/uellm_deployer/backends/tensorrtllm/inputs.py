"""A row in the tensors of TensorRT-LLM's Triton backend."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from ..common.rows import LiveRow

_NEXT_STREAM = 0x9E3779B97F4A7C15  # odd: no two numbers of resumed tokens get the same seed


_TRUE = np.array([[True]])


def row_tensors(row: LiveRow, end_tokens: Collection[int]) -> dict[str, Any]:
    """What is left of a row, by input; each with a first dimension of 1."""
    sampling, tokens = row.row.sampling, row.row.prompt + row.row.resume
    tensors = {
        **_required(tokens, row.tokens_left),
        "streaming": _TRUE,
        "exclude_input_in_output": _TRUE,
        "repetition_penalty": _one(sampling.repetition_penalty, np.float32),
    }
    if sampling.temperature > 0:
        resumed = len(row.row.resume)  # random numbers of the tokens before must not come again
        tensors |= {
            "temperature": _one(sampling.temperature, np.float32),
            "runtime_top_k": _one(sampling.top_k, np.int32),
            "runtime_top_p": _one(sampling.top_p, np.float32),
            "seed": _one((sampling.seed + resumed * _NEXT_STREAM) % 2**64, np.uint64),
        }
    else:
        tensors["runtime_top_k"] = _one(1, np.int32)
    if end_tokens and not sampling.ignore_eos:
        tensors["end_id"] = _one(min(end_tokens), np.int32)  # it takes one; the others are found in what comes back
    return tensors


def stop_tensors() -> dict[str, Any]:
    """A request of the same id with these ends the one that runs."""
    return {**_required((0,), 1), "stop": _TRUE}


def _required(tokens: tuple[int, ...], most: int) -> dict[str, Any]:
    return {
        "input_ids": np.array([tokens], dtype=np.int32),
        "input_lengths": _one(len(tokens), np.int32),
        "request_output_len": _one(most, np.int32),
    }


def _one(value: Any, dtype: Any) -> Any:
    return np.array([[value]], dtype=dtype)
