"""Settings of the profiler."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Literal

from pydantic import DirectoryPath, Field, model_validator

from uellm.rpc.settings import ServiceSettings


def _replica() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"[-128:]


class ProfilerSettings(ServiceSettings):
    """What the profiler is configured with."""

    queue_limit: int = Field(default=10_000, ge=1, examples=[10_000])
    """Queries of one model that may wait or run at once; more get QUEUE_FULL."""
    tokenizer_threads: int = Field(default=2, ge=1, le=64, examples=[2])
    """Threads that encode short prompts, and as many again for long ones."""
    replica: str = Field(default_factory=_replica, min_length=1, max_length=128, examples=["profiler-0"])
    """Name of this replica, different from every other's. Default: host name, process id and a random number."""
    calibration_lease_seconds: float = Field(default=5.0, ge=0.5, le=60, examples=[5.0])
    """How long a model's calibration stays with a replica that is not heard of any more, in seconds."""
    stream_in_flight: int = Field(default=64, ge=1, le=1_024, examples=[64])
    """Requests of one SubmitStream that are decided at once."""
    predictor: Literal["lora", "fast", "prior"] = Field(default="lora", examples=["prior"])
    """Predictor of answer lengths: a fine-tuned LLM, a small encoder, or statistics that look at no prompt."""
    predictor_adapter: DirectoryPath | None = Field(default=None, examples=["adapters/mine"])
    """Folder of its adapter, as `uellm predictor train` writes it; default: the one that comes with the package."""
    predictor_base: DirectoryPath | None = Field(default=None, examples=["weights/smollm2"])
    """Folder of the base model's weights: config.json, safetensors, tokenizer. `lora` needs it."""
    predictor_threads: int = Field(default=2, ge=1, le=256, examples=[2])
    """Threads that it computes with."""
    predictor_batch_prompts: int = Field(default=32, ge=1, le=1_024, examples=[32])
    """Prompts that it computes together."""
    predictor_batch_tokens: int = Field(default=2_048, ge=1, examples=[2_048])
    """Tokens that it computes together, padding included; bounds how long a call waits for the batch before it."""
    predictor_queue_limit: int = Field(default=256, ge=1, examples=[256])
    """Prompts of Profile and Submit that may wait for it; more get PREDICTOR_OVERLOADED."""
    predictor_bulk_queue_limit: int = Field(default=2_048, ge=1_024, examples=[2_048])
    """Prompts of BatchProfile that may wait for it; more get PREDICTOR_OVERLOADED."""

    @model_validator(mode="after")
    def _check_predictor(self) -> ProfilerSettings:
        if self.predictor == "lora" and self.predictor_base is None:
            raise ValueError(
                "--predictor lora needs --predictor-base (UELLM_PREDICTOR_BASE), the folder of its base model; "
                "for example --predictor-base weights/smollm2, or choose --predictor prior"
            )
        if self.predictor == "prior" and self.predictor_adapter is not None:
            raise ValueError("--predictor prior has no adapter: leave --predictor-adapter out, or choose lora or fast")
        return self
