"""A row's sampling parameters in vLLM's words."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

from .rows import LiveRow


def sampling_arguments(row: LiveRow, end_tokens: Collection[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for what is left of a row. Stop strings are found in the text outside."""
    sampling = row.row.sampling
    arguments: dict[str, Any] = {
        "max_tokens": row.tokens_left,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": [] if sampling.ignore_eos else sorted(end_tokens),
        "detokenize": False,
    }
    if sampling.temperature > 0:
        arguments["seed"] = stream_seed(sampling.seed, len(row.row.resume))
    return arguments


def stream_seed(seed: int, resumed: int) -> int:
    """Seed of the random numbers that follow `resumed` tokens: those of the tokens before must not come again.

    vLLM draws from one generator a request, token after token, so a row that goes on can't go on in its numbers.
    """
    if not resumed:
        return seed % 2**63
    digest = hashlib.blake2b(f"{seed} {resumed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % 2**63
