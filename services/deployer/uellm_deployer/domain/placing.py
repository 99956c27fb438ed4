"""A deployment and a machine as the problem that the search solves, and its answer as stages and times."""

from __future__ import annotations

from collections.abc import Sequence

from uellm_deployer.domain.helr import problem as helr
from uellm_deployer.domain.helr.result import CopyPlan, StagePlan
from uellm_deployer.domain.layers import LayerFacts
from uellm_deployer.domain.plan import Stage, StepTime
from uellm_deployer.domain.roofline import Load, Rates, step_time
from uellm_deployer.domain.sizing import Sizing
from uellm_deployer.domain.topology import Device, Link, Topology

PROBE_PROMPT_TOKENS = 128
"""Of the prompt of which the time to the first token is told."""


def problem_of(
    sizing: Sizing, devices: Sequence[Device], topology: Topology, max_copies: int | None = 1
) -> helr.Problem:
    """What is to be placed where: a full batch whose rows are half way through their context."""
    rows, hidden = sizing.spec.max_batch_rows, sizing.shape.hidden_size
    allowed = {device.id for device in devices}
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
        links=tuple(map(_link, links)),
        constraints=helr.Constraints(max_stages=sizing.engine.max_stages, max_copies=max_copies),
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
            all_reduces=2,
        )

    return helr.Model(
        layers=tuple(map(layer, parts.layers)),
        embedding=helr.Part(parts.embedding.weight_bytes, read_bytes=rows * parts.embedding.active_weight_bytes),
        head=helr.Part(
            parts.head.weight_bytes + sizing.copied_head_bytes,
            read_bytes=parts.head.active_weight_bytes,
            flops_per_token=parts.head.flops_per_token,
            all_reduces=1,
        ),
        shared_bytes=parts.tied_bytes,
        activation_bytes=sizing.activation_bytes + sizing.copied_kv_bytes,
        kv_heads=sizing.facts.kv_heads,
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


def _link(link: Link) -> helr.Link:
    shares_layers = link.peer_access and (link.link_class.startswith("NV") or link.link_class == "PIX")
    return helr.Link(link.device_a, link.device_b, link.bandwidth, link.latency_seconds, shares_layers)


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
    parts = sizing.parts
    layers = parts.layers[stage.first_layer : stage.first_layer + stage.layer_count]
    computing = [*layers, *[parts.head] * stage.head]
    (device,) = (one for one in topology.devices if one.id == stage.device_ids[0])
    return Load(
        rates=Rates.of(device),
        step_bytes=sum(part.active_weight_bytes for part in computing),
        row_bytes=parts.embedding.active_weight_bytes if stage.embedding else 0,
        row_flops=sum(part.flops_per_token for part in computing),
        context_token_bytes=sum(layer.kv_bytes_per_token for layer in layers),
        hop_seconds=stage.hop_seconds,
    )
