"""A placement that somebody states: priced, not searched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from uellm_deployer.domain.helr.cost import LONGEST, Pricing, Span
from uellm_deployer.domain.helr.errors import DoesNotFitError, SloUnreachableError
from uellm_deployer.domain.helr.problem import Goal, Problem, Slo
from uellm_deployer.domain.helr.result import Bounds, Placement, describe


def stated(
    problem: Problem, goal: Goal, devices: Sequence[str], layers: Sequence[int], slo: Slo | None = None
) -> Placement:
    """One copy whose stages hold so many layers each, on the devices in this order, equally many a stage.

    Raises:
        ValueError: the constraints do not allow it; the text says why.
        DoesNotFitError: a device is too small.
        SloUnreachableError: it does not keep the SLO.
    """
    index = {device.id: position for position, device in enumerate(problem.devices)}
    size = len(devices) // len(layers)
    ends = list(pairwise(accumulate(layers, initial=0)))
    members = [
        tuple(index[one] for one in devices[first : first + size] if one in index)
        for first in range(0, len(devices), size)
    ]
    copy = [Span(group, first, last) for group, (first, last) in zip(members, ends, strict=True)]
    pricing = Pricing(problem)
    for wrong, text in _checks(pricing, copy, size):
        if wrong:
            raise ValueError(text)
    if missing := pricing.missing_bytes(copy):
        needed = sum(stage.weight_bytes + stage.kv_bytes for stage in describe(pricing, [copy]).copies[0].stages)
        room = (device.room_bytes - problem.model.activation_bytes for device in problem.devices)
        raise DoesNotFitError(missing, needed, sum(max(0, one) for one in room))
    plan = describe(pricing, [copy])
    times = plan.copies[0].first_token_seconds, plan.copies[0].output_token_seconds
    if slo is not None and not keeps(slo, *times):
        raise SloUnreachableError(*times)
    bounds = Bounds(plan.latency_seconds, plan.bottleneck_seconds, plan.device_count)
    return Placement(goal, plan, exact=True, bounds=bounds)


def keeps(slo: Slo, first_token_seconds: float, output_token_seconds: float) -> bool:
    """Whether these times keep what was promised."""
    pairs = (first_token_seconds, slo.first_token_seconds), (output_token_seconds, slo.output_token_seconds)
    return all(most is None or seconds <= most for seconds, most in pairs)


def _checks(pricing: Pricing, copy: Sequence[Span], size: int) -> Iterator[tuple[bool, str]]:
    rules, layers = pricing.problem.constraints, len(pricing.problem.model.layers)
    yield copy[-1].last != layers, f"must sum to the model's {layers} layers; got {copy[-1].last}"
    most = rules.max_stages or layers
    yield len(copy) > most, f"must be at most {most} on this engine; got {len(copy)}"
    yield any(span.last - span.first < rules.min_layers for span in copy), f"must be at least {rules.min_layers} each"
    yield any(len(span.devices) < size for span in copy), "must be on devices of one kind"
    sizes = ", ".join(map(str, rules.tensor_sizes))
    yield size not in rules.tensor_sizes, f"must have as many devices each as layers can be shared by: {sizes}"
    yield (
        any(not pricing.can_group(span.devices) for span in copy),
        "must not share layers over links that are too slow",
    )
    hops = (pricing.hop(a.devices, b.devices) for a, b in pairwise(copy))
    yield any(decode >= LONGEST for decode, _ in hops), "must follow links between the devices"
