"""A deployment and a machine as the problem that the search solves, and its answer as stages and times."""

from __future__ import annotations

from collections.abc import Sequence

from uellm_deployer.domain.helr import problem as helr
from uellm_deployer.domain.helr.cost import all_reduce_seconds
from uellm_deployer.domain.helr.result import CopyPlan, StagePlan
from uellm_deployer.domain.layers import LayerFacts
from uellm_deployer.domain.plan import Stage, StepTime
from uellm_deployer.domain.roofline import LAYER_SECONDS, Load, Rates, step_time
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

LAYER_EXCHANGES = 2
"""All-reduces of a layer that a group shares: behind attention, and behind the feed-forward part."""

PROBE_PROMPT_TOKENS = 128
"""Of the prompt of which the time to the first token is told."""


def problem_of(
    sizing: Sizing, devices: Sequence[Device], topology: Topology, max_copies: int | None = 1
) -> helr.Problem:
    """What is to be placed where: a full batch whose rows are half way through their context."""
    rows, hidden = sizing.spec.max_batch_rows, sizing.shape.hidden_size
    # A process sees one MIG device only, so that nothing is spread over several.
    allowed = {device.id for device in devices if not device.parent_id}
    # What a link carries that has no bandwidth is not known: nothing is sent over it.
    links = [link for link in topology.links if {link.device_a, link.device_b} <= allowed and link.bandwidth > 0]
    return helr.Problem(
        model=_model(sizing),
        workload=helr.Workload(
            rows=rows,
            prompt_tokens=PROBE_PROMPT_TOKENS,
            decode_hop_bytes=rows * hidden * sizing.element_bytes,
            prefill_hop_bytes=PROBE_PROMPT_TOKENS * hidden * sizing.element_bytes,
        ),
        devices=tuple(_device(device, sizing.framework_bytes) for device in devices),
        links=tuple(_link(link, kind=sizing.kind) for link in links),
        constraints=helr.Constraints(
            tensor_sizes=sizing.tensor_sizes, max_stages=sizing.max_stages, max_copies=max_copies
        ),
    )


def _model(sizing: Sizing) -> helr.Model:
    parts, rows = sizing.parts, sizing.spec.max_batch_rows
    context = sizing.spec.context_tokens / 2

    def layer(facts: LayerFacts) -> helr.Part:
        reach = min(context, facts.window_tokens) if facts.window_tokens else context
        return helr.Part(
            weight_bytes=facts.weight_bytes,
            kv_bytes=sizing.kv_bytes(facts),
            read_bytes=sizing.read_bytes(facts, rows),
            kv_read_bytes=round(rows * (facts.kv_bytes_per_token * reach + facts.kv_fixed_bytes)),
            flops_per_token=facts.flops_per_token + facts.flops_per_context_token * reach,
            all_reduces=LAYER_EXCHANGES,
            start_seconds=LAYER_SECONDS[sizing.kind],
            whole_bytes=facts.whole_bytes,
            kv_weight_bytes=sizing.kv_weight_bytes(facts),
        )

    return helr.Model(
        layers=tuple(map(layer, parts.layers)),
        embedding=helr.Part(
            parts.embedding.weight_bytes + sizing.copied_embedding_bytes,
            read_bytes=rows * parts.embedding.active_weight_bytes,
            all_reduces=1,
            whole_bytes=parts.embedding.whole_bytes,
        ),
        head=helr.Part(
            parts.head.weight_bytes + sizing.copied_head_bytes,
            read_bytes=parts.head.active_weight_bytes,
            flops_per_token=parts.head.flops_per_token,
            all_reduces=1,
            last_token_only=True,
            whole_bytes=parts.head.whole_bytes,
        ),
        shared_bytes=sizing.tied_bytes,
        activation_bytes=sizing.activation_bytes + sizing.copied_kv_bytes,
        kv_heads=sizing.kv_heads,
    )


def _device(device: Device, framework_bytes: int) -> helr.Device:
    rates = Rates.of(device)
    return helr.Device(
        id=device.id,
        free_bytes=device.free_memory_bytes,
        bandwidth=rates.bandwidth,
        flops=rates.flops,
        reserve_bytes=framework_bytes,
        bandwidth_efficiency=rates.bandwidth_efficiency,
        flops_efficiency=rates.flops_efficiency,
        node=max(0, device.numa_node),
    )


def _link(link: Link, kind: DeviceKind) -> helr.Link:
    near = link.peer_access and (link.link_class.startswith("NV") or link.link_class == "PIX")
    # Processors of one machine exchange through its memory.
    return helr.Link(
        link.device_a, link.device_b, link.bandwidth, link.latency_seconds, groups=near or kind is DeviceKind.CPU
    )


def stages_of(copy: CopyPlan, sizing: Sizing) -> tuple[Stage, ...]:
    """The stages of a copy of the model. The cache's working copy counts to the cache."""
    return tuple(
        Stage(
            device_ids=stage.device_ids,
            first_layer=stage.first_layer,
            layer_count=stage.layer_count,
            embedding=stage.embedding,
            head=stage.head,
            weight_bytes=stage.weight_bytes,
            kv_bytes=stage.kv_bytes + sizing.copied_kv_bytes,
            reserve_bytes=stage.reserve_bytes + sizing.activation_bytes,
        )
        for stage in copy.stages
    )


def times_of(copy: CopyPlan, sizing: Sizing, topology: Topology) -> StepTime:
    """What a step takes, by rows and context."""
    return step_time(_load(stage, sizing, topology) for stage in copy.stages)


def _load(stage: StagePlan, sizing: Sizing, topology: Topology) -> Load:
    parts, size = sizing.parts, stage.tensor_size
    split = min(size, sizing.kv_heads)
    layers = parts.layers[stage.first_layer : stage.first_layer + stage.layer_count]
    computing, layer_flops = [*layers, *[parts.head] * stage.head], sum(layer.flops_per_token for layer in layers)
    repeated: float = (size - 1) * sum(part.whole_bytes for part in computing)
    repeated += (size / split - 1) * sum(map(sizing.kv_weight_bytes, layers))
    return Load(
        rates=Rates.slowest(Rates.of(one) for one in topology.devices if one.id in stage.device_ids),
        step_bytes=(sum(part.active_weight_bytes for part in computing) + repeated) / size,
        row_bytes=parts.embedding.active_weight_bytes / size if stage.embedding else 0,
        row_flops=sum(part.flops_per_token for part in computing) / size,
        prompt_token_flops=layer_flops / size,
        context_token_bytes=sum(layer.kv_bytes_per_token for layer in layers) / split,
        start_seconds=len(layers) * LAYER_SECONDS[sizing.kind],
        hop_seconds=stage.hop_seconds,
        exchange_seconds=_exchange(stage, sizing, topology) if size > 1 else (0.0, 0.0),
    )


def _exchange(stage: StagePlan, sizing: Sizing, topology: Topology) -> tuple[float, float]:
    """Of a group's all-reduces in one step: seconds whatever its rows, and of each row; exact for one and for all."""
    links = [link for link in topology.links if {link.device_a, link.device_b} <= set(stage.device_ids)]
    count = LAYER_EXCHANGES * stage.layer_count + stage.embedding + stage.head
    row_bytes, most = sizing.shape.hidden_size * sizing.element_bytes, max(2, sizing.spec.max_batch_rows)

    def seconds(rows: int) -> float:
        size = stage.tensor_size
        return count * max(
            all_reduce_seconds(size, rows * row_bytes, link.bandwidth, link.latency_seconds) for link in links
        )

    each = (seconds(most) - seconds(1)) / (most - 1)
    return seconds(1) - each, each
