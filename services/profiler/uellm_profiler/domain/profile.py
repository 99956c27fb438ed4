"""From a predicted length to a resource profile."""

from __future__ import annotations

import math

from uellm.cost.kv_cache import KvCacheLayout
from uellm.cost.lengths import LengthDistribution
from uellm.cost.model import CostModel
from uellm.cost.service import service_time
from uellm.cost.steps import batch_work
from uellm.rpc.refusals import duration
from uellm.v1.query_pb2 import Hints, ResourceProfile
from uellm.v1.stream_pb2 import DeploymentRecord


def resource_profile(
    deployment: DeploymentRecord,
    prompt_tokens: int,
    length: LengthDistribution,
    cost: CostModel,
    *,
    priority: int,
    predictor_version: str,
) -> ResourceProfile:
    """What a query costs on a deployment.

    Quantiles of times are of the joint distribution of the length and of what the cost model is uncertain about.
    """
    output = length.to_proto()
    rows = max(1, deployment.limits.max_batch_rows)
    median = batch_work([prompt_tokens], [max(1.0, output.p50_tokens)], padded=False)
    alone_p50, alone_p90 = service_time(cost, prompt_tokens, length).quantiles(0.5, 0.9)
    batch_p50, batch_p90 = service_time(cost, prompt_tokens, length, rows=rows).quantiles(0.5, 0.9)
    return ResourceProfile(
        prompt_tokens=prompt_tokens,
        output_length=output,
        kv_cache_bytes_p90=kv_cache_bytes(deployment, prompt_tokens + math.ceil(output.p90_tokens)),
        kv_cache_bytes_limit=kv_cache_bytes(deployment, prompt_tokens + length.limit),
        service_time_p50=duration(alone_p50),
        service_time_p90=duration(alone_p90),
        first_token_time=duration(cost.step_time.first_token_seconds(prompt_tokens)),
        predictor_version=predictor_version,
        cost_model_version=cost.version,
        batch_rows=rows,
        batch_service_time_p50=duration(batch_p50),
        batch_service_time_p90=duration(batch_p90),
        cost_model_error=cost.relative_error,
        cost_model_interval=cost.relative_interval(median),
        hints=Hints(osl=math.ceil(length.mean), vllm_priority=-priority),
    )


def kv_cache_bytes(deployment: DeploymentRecord, context_tokens: int) -> int:
    """What a row alone takes of the engine's key-value cache when prompt and answer have so many tokens."""
    layout = KvCacheLayout.from_facts(deployment.facts)
    if page_tokens := deployment.limits.kv_page_tokens:
        return layout.paged_row_bytes(context_tokens, page_tokens)
    return layout.row_bytes(context_tokens)
