"""Parameters of a continuous engine's model config besides the common ones; plain data."""

from __future__ import annotations

STAGES = "stages"  # JSON: [[[device, ...], layers], ...], device `cpu` or `cuda:N`; none: everything on the CPU
ROWS = "rows"  # rows that are computed at once; more wait inside the engine
CONTEXT_TOKENS = "context_tokens"  # prompt and answer together
KV_BYTES = "kv_bytes"  # memory for the key-value cache, on each device of the stage that needs most
MEMORY_SHARE = "memory_share"  # of a device, for weights, cache and activations: what must be free when vLLM starts
PAGE_TOKENS = "page_tokens"  # tokens of a page of the cache

NOT_INSTALLED = "vLLM is not in the Python environment of this Triton"
"""How the error of a load begins that fails for want of vLLM."""
