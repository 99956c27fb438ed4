"""A placement that explains itself. Times in seconds, sizes in bytes per device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing, Span
from uellm_deployer.domain.helr.problem import Goal, Part


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Layers on one device, or shared by a tensor-parallel group."""

    device_ids: tuple[str, ...]
    first_layer: int
    layer_count: int
    embedding: bool
    head: bool
    weight_bytes: int
    kv_bytes: int
    activation_bytes: int
    reserve_bytes: int
    """The most among the members."""
    decode_seconds: float
    prefill_seconds: float
    hop_seconds: float
    """To the next stage, in a decode step; 0 after the last."""

    @property
    def tensor_size(self) -> int:
        """Devices that share each layer."""
        return len(self.device_ids)

    @property
    def total_bytes(self) -> int:
        """All that it needs on each device."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes + self.reserve_bytes


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """One copy of the model."""

    stages: tuple[StagePlan, ...]
    latency_seconds: float
    """LR: a decode step through all stages and hops."""
    bottleneck_seconds: float
    interval_seconds: float
    """Between two steps that leave it, with the stated micro-batches in flight."""
    first_token_seconds: float
    output_token_seconds: float

    @property
    def bottleneck(self) -> str:
        """What takes longest, in words."""
        for number, stage in enumerate(self.stages):
            if stage.decode_seconds == self.bottleneck_seconds:
                return f"stage {number} on {', '.join(stage.device_ids)}"
        hop = max(range(len(self.stages) - 1), key=lambda number: self.stages[number].hop_seconds)
        return f"the hop after stage {hop}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Copies that share the traffic evenly."""

    copies: tuple[CopyPlan, ...]
    latency_seconds: float
    """LR of the slowest copy."""
    bottleneck_seconds: float
    """Between two steps that leave any copy: the longest interval of a copy, divided by their number."""
    device_count: int
    fill: float
    """Share of the used devices' free memory that is needed."""

    @property
    def tensor_size(self) -> int:
        """The largest group."""
        return max(stage.tensor_size for copy in self.copies for stage in copy.stages)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that is best in another respect, and what it lost by."""

    plan: Plan
    reason: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What no plan falls below."""

    latency_seconds: float
    """LR of any plan that the goal admits. Of an exact answer it is the plan's own."""
    bottleneck_seconds: float | None
    """Of any plan; told for HELR. Of an exact answer it is the least there is."""
    devices: int
    """In number, of any plan."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The best plan, with a bound on all plans."""

    goal: Goal
    plan: Plan
    exact: bool
    """Whether no plan is better; else the bounds say how much better one could be."""
    bounds: Bounds
    alternatives: tuple[Alternative, ...] = ()

    @property
    def objective_seconds(self) -> float:
        """LR."""
        return self.plan.latency_seconds

    @property
    def gap(self) -> float:
        """By which share of the bound LR may be too high."""
        return self.objective_seconds / self.bounds.latency_seconds - 1

    @property
    def bottleneck_gap(self) -> float | None:
        """By which share the bottleneck exceeds the least; up to the slack this is what HELR paid for LR."""
        least = self.bounds.bottleneck_seconds
        return None if least is None else self.plan.bottleneck_seconds / least - 1


def seconds(picoseconds: int) -> float:
    """As a float."""
    return picoseconds / PER_SECOND


def describe(pricing: Pricing, copies: Sequence[Sequence[Span]]) -> Plan:
    """Price copies on disjoint devices."""
    prices = [pricing.price(copy) for copy in copies]
    plans = tuple(
        CopyPlan(
            stages=tuple(
                _stage(pricing, span, decode, hop or 0)
                for span, decode, hop in zip_longest(copy, price.stages, price.hops)
            ),
            latency_seconds=seconds(price.latency),
            bottleneck_seconds=seconds(price.bottleneck),
            interval_seconds=seconds(price.interval),
            first_token_seconds=seconds(price.prefill),
            output_token_seconds=seconds(price.output_token),
        )
        for copy, price in zip(copies, prices, strict=True)
    )
    used = [device for copy in copies for span in copy for device in span.devices]
    needed = sum(stage.total_bytes * stage.tensor_size for plan in plans for stage in plan.stages)
    return Plan(
        copies=plans,
        latency_seconds=seconds(max(price.latency for price in prices)),
        bottleneck_seconds=seconds(max(price.interval for price in prices)) / len(prices),
        device_count=len(used),
        fill=needed / max(1, sum(pricing.problem.devices[device].free_bytes for device in used)),
    )


def _stage(pricing: Pricing, span: Span, decode: int, hop: int) -> StagePlan:
    model, curves = pricing.problem.model, pricing.curves(span.devices)
    size, split = len(span.devices), min(len(span.devices), model.kv_heads)
    embedding, head = span.first == 0, span.last == len(model.layers)
    parts = [*model.layers[span.first : span.last], *[model.embedding] * embedding, *[model.head] * head]

    def kv(part: Part) -> int:
        return -(-part.kv_bytes // split)

    kv_bytes = sum(map(kv, parts))
    members = [pricing.problem.devices[device] for device in span.devices]
    return StagePlan(
        device_ids=tuple(member.id for member in members),
        first_layer=span.first,
        layer_count=span.last - span.first,
        embedding=embedding,
        head=head,
        weight_bytes=sum(part.weights_on(size, split) for part in parts)
        - (model.shared_bytes // size if embedding and head else 0),
        kv_bytes=kv_bytes,
        activation_bytes=model.activation_bytes,
        reserve_bytes=max(member.reserve_bytes for member in members),
        decode_seconds=seconds(decode),
        prefill_seconds=seconds(int(curves.prefill[span.last] - curves.prefill[span.first])),
        hop_seconds=seconds(hop),
    )
