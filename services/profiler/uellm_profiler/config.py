"""Settings of the profiler."""

from __future__ import annotations

from pydantic import Field

from uellm.rpc.settings import ServiceSettings


class ProfilerSettings(ServiceSettings):
    """What the profiler is configured with."""

    queue_limit: int = Field(default=10_000, ge=1, examples=[10_000])
    """Queries of one model that may wait or run at once; more get QUEUE_FULL."""
    tokenizer_threads: int = Field(default=2, ge=1, le=64, examples=[2])
    """Threads that encode short prompts, and as many again for long ones."""
