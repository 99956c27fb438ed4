"""Rows to requests of NVIDIA's vLLM backend, and its answers to tokens."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

from ..common.front import Ask
from ..common.rows import LiveRow
from .requests import new_tokens, row_tensors
from .spelling import Speller


class NvidiaVllm:
    """The model of Triton's backend `vllm`. It ends a row early only if its request is cancelled."""

    name = "vLLM"
    keeps_end_token = False

    def __init__(self, ask: Ask, speller: Speller, end_tokens: Collection[int]) -> None:
        self._ask = ask
        self._speller = speller
        self._end_tokens = end_tokens

    def generate(self, key: str, row: LiveRow) -> Generator[Sequence[int]]:
        """As `Behind`."""
        text, read = self._speller.spell(row.row.prompt, row.row.resume)
        for outputs in self._ask(key, row_tensors(text, row, self._end_tokens)):
            yield new_tokens(outputs, read)

    def stop(self, key: str) -> None:
        """Nothing: whoever reads the answers closes them."""
