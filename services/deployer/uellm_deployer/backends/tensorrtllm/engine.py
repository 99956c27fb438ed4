"""Rows to requests of TensorRT-LLM, and its answers to tokens."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from ..common.front import Ask
from ..common.rows import LiveRow
from .inputs import row_tensors, stop_tensors


class TensorRtLlm:
    """The model of Triton's backend `tensorrtllm`; a request with `stop` ends the one of the same id."""

    name = "TensorRT-LLM"
    keeps_end_token = True

    def __init__(self, ask: Ask, end_tokens: Collection[int]) -> None:
        self._ask = ask
        self._end_tokens = end_tokens

    def generate(self, key: str, row: LiveRow) -> Generator[Sequence[int]]:
        """As `Behind`."""
        for outputs in self._ask(key, row_tensors(row, self._end_tokens)):
            length = int(outputs["sequence_length"].reshape(-1)[0])
            yield outputs["output_ids"].reshape(-1)[:length].tolist()

    def stop(self, key: str) -> None:
        """As `Behind`."""
        for _ in self._ask(key, stop_tensors()):
            pass
