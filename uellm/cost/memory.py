"""What a model occupies: weights, key-value cache, activations. All results are bytes."""

from __future__ import annotations

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one number, by format."""


def kv_bytes_per_token(layers: int, kv_heads: int, head_size: int, bytes_per_element: int) -> int:
    """Keys and values of one token over all layers, for full attention.

    The general form of the UELLM paper's memory model, which knows no grouped-query attention: there `kv_heads` equals
    the query heads.
    """
    return 2 * layers * kv_heads * head_size * bytes_per_element


def kv_cache_bytes(rows: int, context_tokens: int, bytes_per_token: int) -> int:
    """Cache of a padded batch: every row takes the longest context."""
    return rows * context_tokens * bytes_per_token


def activation_bytes(
    rows: int, tokens: int, hidden_size: int, intermediate_size: int, vocabulary_size: int, bytes_per_element: int
) -> int:
    """Most that is alive at once in a prefill of `rows` prompts padded to `tokens`.

    One layer's tensors are alive at a time: the residual, its norm, the attention's output and projection (hidden wide)
    or gate, up and product (intermediate wide); besides them the attention mask (one byte a pair) and the logits of the
    last token in single precision.
    """
    width = max(6 * hidden_size, 2 * hidden_size + 3 * intermediate_size)
    return rows * tokens * width * bytes_per_element + rows * tokens * tokens + rows * vocabulary_size * 4
