"""From a predicted length to a resource profile."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration

from uellm.cost.lengths import LengthDistribution
from uellm.cost.steps import StepTime
from uellm.v1.query_pb2 import Hints, ResourceProfile
from uellm.v1.stream_pb2 import DeploymentRecord


def resource_profile(
    deployment: DeploymentRecord,
    prompt_tokens: int,
    length: LengthDistribution,
    *,
    priority: int,
    predictor_version: str,
) -> ResourceProfile:
    """What a query costs on a deployment.

    Times are those of the query served alone. They grow with the length, so that their quantiles are the times of the
    length's quantiles.
    """
    prior = deployment.step_time_prior
    steps = StepTime.from_prior(prior)
    output = length.to_proto()
    kv_bytes = deployment.facts.kv_bytes_per_token
    return ResourceProfile(
        prompt_tokens=prompt_tokens,
        output_length=output,
        kv_cache_bytes_p90=kv_bytes * (prompt_tokens + math.ceil(output.p90_tokens)),
        kv_cache_bytes_limit=kv_bytes * (prompt_tokens + length.limit),
        service_time_p50=duration(steps.alone_seconds(prompt_tokens, max(1.0, output.p50_tokens))),
        service_time_p90=duration(steps.alone_seconds(prompt_tokens, max(1.0, output.p90_tokens))),
        first_token_time=duration(steps.first_token_seconds(prompt_tokens)),
        predictor_version=predictor_version,
        cost_model_version=f"prior/{prior.source}" if prior.source else "prior",
        hints=Hints(osl=math.ceil(length.mean), vllm_priority=-priority),
    )


def duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
