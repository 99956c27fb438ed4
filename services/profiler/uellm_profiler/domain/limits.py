"""What a deployment makes of a query: which deployment, how long the answer may be, every default filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uellm.v1.query_pb2 import ON_MISS_FINISH_LATE, ON_MISS_UNSPECIFIED, GenerationParameters, Query
from uellm.v1.stream_pb2 import DeploymentRecord

SEED_LIMIT = 2**53
"""Seeds that are assigned lie below it, so that they pass through JSON and float64 unchanged."""
DEFAULT_CONFIDENCE = 0.9
_SAMPLING_DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}


def choose_deployment(ready: Sequence[DeploymentRecord]) -> DeploymentRecord | None:
    """The deployment with the largest share of the traffic, the first by name among equals; None if there is none."""
    return min(ready, key=lambda record: (-record.traffic_share, record.name), default=None)


def context_tokens(deployment: DeploymentRecord) -> int:
    """Prompt and answer together, in tokens: what the engine accepts, which may be less than the model."""
    return deployment.limits.context_tokens or deployment.facts.context_limit_tokens


def output_limit(asked: GenerationParameters, deployment: DeploymentRecord, prompt_tokens: int) -> int:
    """Longest answer, in tokens: the least of the caller's wish, the engine's limit and what the context leaves.

    Below 1 if the prompt leaves no room.
    """
    room = context_tokens(deployment) - prompt_tokens
    engine = deployment.limits.max_output_tokens or room
    for parameters in (asked, deployment.default_generation):
        if parameters.HasField("max_output_tokens"):
            return min(parameters.max_output_tokens, engine, room)
    return min(engine, room)


def fill_defaults(query: Query, deployment: DeploymentRecord, limit: int, new_seed: Callable[[], int]) -> Query:
    """The query with every parameter set that an engine or the scheduler reads.

    That is the caller's value, else the deployment's, else greedy decoding without penalty.
    """
    filled = Query()
    filled.CopyFrom(query)
    filled.ClearField("name")
    filled.generation.CopyFrom(_generation(query.generation, deployment.default_generation))
    filled.generation.max_output_tokens = limit
    if not filled.generation.HasField("seed"):
        filled.generation.seed = new_seed()
    if query.HasField("slo"):
        if not query.slo.confidence:
            filled.slo.confidence = DEFAULT_CONFIDENCE
        if query.slo.on_miss == ON_MISS_UNSPECIFIED:
            filled.slo.on_miss = ON_MISS_FINISH_LATE
    return filled


def _generation(asked: GenerationParameters, default: GenerationParameters) -> GenerationParameters:
    filled = GenerationParameters()
    filled.CopyFrom(asked)
    for field, otherwise in _SAMPLING_DEFAULTS.items():
        if not asked.HasField(field):
            setattr(filled, field, getattr(default, field) if default.HasField(field) else otherwise)
    if default.HasField("seed") and not asked.HasField("seed"):
        filled.seed = default.seed
    if not asked.stop:
        filled.stop.extend(default.stop)
    return filled
