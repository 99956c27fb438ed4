"""An engine without a language model that speaks the engine protocol, as the `model.py` of a Triton model.

It loads at once. While the weights' folder holds a file `hold`, loading waits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from uellm_backends.common.job import Sink
from uellm_backends.common.request import BadRow, Row
from uellm_backends.common.rows import RowDelta
from uellm_backends.common.triton_model import TritonModel

HOLD = "hold"


class Bytes:
    """Every byte is a token."""

    vocabulary = 256
    context_limit = 512

    def encode(self, text: str, *, chat: bool) -> list[int]:
        return list(text.encode())


class LightEngine:
    """Answers with the prompt's letters, over and over."""

    def __init__(self, kv_bytes_per_token: int) -> None:
        self._kv_bytes_per_token = kv_bytes_per_token

    def submit(self, batch_id: str, rows: Sequence[Row | BadRow], sink: Sink, fence: tuple[str, int]) -> None:
        sink.send([_answer(row) for row in rows if isinstance(row, Row)], json.dumps({"decode": []}))
        sink.close()

    def cancel(self, batch_id: str, row_ids: Collection[str]) -> list[str]:
        return []

    def fence(self, scope: str, epoch: int) -> None:
        """Nothing runs when a request comes in."""

    def describe(self) -> dict[str, Any]:
        return {"weight_bytes": 0, "kv_bytes_per_token": self._kv_bytes_per_token, "batches_running": 0}

    def close(self) -> None:
        """Nothing is held."""


class TritonPythonModel(TritonModel):
    """Loaded by Triton's Python backend."""

    def load(self, parameters: dict[str, str]) -> tuple[Bytes, LightEngine]:
        weights = Path(parameters["weights"])
        while (weights / HOLD).exists():
            time.sleep(0.01)
        config = json.loads((weights / "config.json").read_text())
        layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
        return Bytes(), LightEngine(config["num_hidden_layers"] * layer)


def _answer(row: Row) -> RowDelta:
    first, last = len(row.resume), row.sampling.max_tokens
    tokens = tuple(row.prompt[i % len(row.prompt)] for i in range(first, last))
    return RowDelta(row.row_id, bytes(tokens).decode(errors="replace"), tokens, first, "length", "", len(row.prompt))
