"""Refusals of the profiler, each with its numbers and what to do next."""

from __future__ import annotations

from uellm.rpc.errors import RefusedError
from uellm.rpc.refusals import DEFAULT_RETRY_SECONDS, clamped, duration, model_not_deployed, queue_full, retry_seconds
from uellm.v1.query_pb2 import (
    REFUSAL_REASON_PREDICTOR_OVERLOADED,
    REFUSAL_REASON_PROMPT_TOO_LONG,
    PredictorOverloaded,
    PromptTooLong,
    Refusal,
)

__all__ = ["model_not_deployed", "predictor_overloaded", "prompt_too_long", "queue_full", "retry_seconds"]


def prompt_too_long(tokens: int, context: int, path: str) -> RefusedError:
    """The prompt leaves no room for an answer; `path` is the query's in the request, `context` is in tokens."""
    limit = max(context - 1, 0)
    message = f"{path}: the prompt has {tokens:,} tokens, the model accepts {limit:,}. Shorten it"
    detail = PromptTooLong(tokens=tokens, limit=limit)
    return RefusedError(Refusal(reason=REFUSAL_REASON_PROMPT_TOO_LONG, message=message, prompt_too_long=detail))


def predictor_overloaded(waiting: int, limit: int, seconds: float | None) -> RefusedError:
    """As many prompts wait for the predictor as may; there should be room in `seconds` (None: not known yet)."""
    retry = DEFAULT_RETRY_SECONDS if seconds is None else clamped(seconds)
    message = (
        f"the predictor is overloaded: {waiting:,} prompts wait, {limit:,} may. "
        f"Try again in {retry:.1f} s, or set allow_prior"
    )
    detail = PredictorOverloaded(waiting=waiting, limit=limit, retry_after=duration(retry))
    return RefusedError(
        Refusal(reason=REFUSAL_REASON_PREDICTOR_OVERLOADED, message=message, predictor_overloaded=detail)
    )
