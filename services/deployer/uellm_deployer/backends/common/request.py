"""Parsing and checking of one generate request (docs/engine-protocol.md, Generate)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
LARGEST = 1e30  # numbers beyond it are not finite in float32 arithmetic


class RequestError(ValueError):
    """The request as a whole cannot be served; the message names the tensor or parameter."""


class RowError(ValueError):
    """One row cannot be served; the others can."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How one row is generated; the fields are the keys of the protocol's JSON object."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    raw_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can run: prompt and resumed tokens as ids."""

    row_id: str
    prompt: tuple[int, ...]
    resume: tuple[int, ...]
    sampling: SamplingParameters


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that ends as `error` before it starts."""

    row_id: str
    message: str


class PromptEncoder(Protocol):
    """What parsing needs of a model."""

    @property
    def vocabulary(self) -> int:
        """Number of token ids the model embeds; ids lie in [0, vocabulary)."""

    @property
    def context_limit(self) -> int:
        """Most tokens of prompt and answer together."""

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt, with the chat template applied if `chat`."""


def decode_strings(name: str, values: NDArray[Any]) -> list[str]:
    """BYTES tensor to strings; raises RequestError naming the tensor."""
    try:
        return [item.decode() if isinstance(item, bytes) else str(item) for item in values.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: {error}") from None


def parse_rows(inputs: Mapping[str, NDArray[Any]], encoder: PromptEncoder) -> list[Row | BadRow]:
    """Turn the tensors of a generate request into rows, in order.

    Raises RequestError where no row can be told from another (missing tensors, lengths that do not add up).
    """
    row_ids = decode_strings("row_id", _required(inputs, "row_id"))
    if not row_ids:
        raise RequestError("row_id is empty: a batch has at least one row")
    if len(set(row_ids)) != len(row_ids):
        raise RequestError("row_id holds the same id twice")
    count = len(row_ids)
    prompts = _ragged(inputs, "prompt_token_ids", "prompt_lengths", count)
    resumes = _ragged(inputs, "resume_token_ids", "resume_lengths", count)
    parameters = _vector(inputs, "sampling_parameters", count)
    texts = _texts(inputs, prompts)
    return [
        _parse_row(row_id, prompts[i], texts[i], resumes[i], parameters[i], encoder) for i, row_id in enumerate(row_ids)
    ]


def _parse_row(
    row_id: str, prompt: list[int], text: Any, resume: list[int], parameters: Any, encoder: PromptEncoder
) -> Row | BadRow:
    try:
        sampling = parse_sampling(parameters)
        if not prompt:
            prompt = encoder.encode(_utf8("text_input", text), chat=not sampling.raw_prompt)
        _check_tokens("prompt_token_ids", prompt, encoder.vocabulary)
        _check_tokens("resume_token_ids", resume, encoder.vocabulary)
        _check_room(len(prompt), encoder.context_limit)
    except RowError as error:
        return BadRow(row_id, str(error))
    return Row(row_id, tuple(prompt), tuple(resume), sampling)


def parse_sampling(raw: bytes | str) -> SamplingParameters:
    """One row's JSON object; raises RowError naming the key."""
    try:
        values = json.loads(_utf8("sampling_parameters", raw))
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError(f"sampling_parameters is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RowError("sampling_parameters is not a JSON object")
    unknown = sorted(set(values) - _CHECKS.keys())
    if unknown:
        raise RowError(f"sampling_parameters: unknown key {', '.join(unknown)}; known: {', '.join(_CHECKS)}")
    if "max_tokens" not in values:
        raise RowError("sampling_parameters: max_tokens is required")
    for key, value in values.items():
        valid, expected = _CHECKS[key]
        if not valid(value):
            raise RowError(f"sampling_parameters: {key} must be {expected}, not {value!r:.80}")
    if "stop" in values:
        values["stop"] = tuple(values["stop"])
    return SamplingParameters(**values)


def _is_integer(value: Any, low: int, high: int = INT64_MAX) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens": (lambda v: _is_integer(v, 1), "an integer of at least 1"),
    "temperature": (lambda v: _is_number(v) and v >= 0, "a number of at least 0"),
    "top_p": (lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda v: _is_integer(v, 0), "an integer of at least 0"),
    "repetition_penalty": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "seed": (lambda v: _is_integer(v, INT64_MIN), "an integer of 64 bits"),
    "stop": (
        lambda v: isinstance(v, list) and all(isinstance(item, str) and item for item in v),
        "a list of strings that are not empty",
    ),
    "ignore_eos": (lambda v: isinstance(v, bool), "true or false"),
    "raw_prompt": (lambda v: isinstance(v, bool), "true or false"),
}
assert tuple(_CHECKS) == tuple(field.name for field in fields(SamplingParameters))


def _required(inputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in inputs:
        raise RequestError(f"input {name} is missing")
    return inputs[name].reshape(-1)


def _vector(inputs: Mapping[str, NDArray[Any]], name: str, count: int) -> list[Any]:
    values = _required(inputs, name)
    if len(values) != count:
        raise RequestError(f"{name} has {len(values)} elements, row_id has {count}")
    return list(values.tolist())


def _ragged(inputs: Mapping[str, NDArray[Any]], flat: str, lengths: str, count: int) -> list[list[int]]:
    """Split the concatenated ids of `flat` by `lengths`; empty lists if both are missing."""
    if flat not in inputs and lengths not in inputs:
        return [[] for _ in range(count)]
    sizes = np.asarray(_vector(inputs, lengths, count), dtype=np.int64)
    if (sizes < 0).any():
        raise RequestError(f"{lengths} has a negative element")
    ids = inputs[flat].reshape(-1) if flat in inputs else np.empty(0, dtype=np.int32)
    if sizes.sum() != len(ids):
        raise RequestError(f"{flat} has {len(ids)} elements, {lengths} adds up to {sizes.sum()}")
    return [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])]


def _texts(inputs: Mapping[str, NDArray[Any]], prompts: Sequence[list[int]]) -> list[Any]:
    if "text_input" in inputs:
        return _vector(inputs, "text_input", len(prompts))
    if all(prompts):
        return [b""] * len(prompts)
    raise RequestError("input text_input is missing, and not every row has prompt_token_ids")


def _utf8(name: str, raw: bytes | str) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise RowError(f"{name} is not UTF-8: {error}") from None


def _check_tokens(name: str, tokens: Sequence[int], vocabulary: int) -> None:
    bad = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if bad is not None:
        raise RowError(f"{name}: token id {bad} is out of range, the vocabulary has {vocabulary}")


def _check_room(tokens: int, context_limit: int) -> None:
    if not tokens:
        raise RowError("the prompt is empty")
    if tokens >= context_limit:
        raise RowError(
            f"the prompt has {tokens} tokens and leaves no room for an answer: the context holds {context_limit}"
        )
