"""Small placement problems, and all their plans one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, pairwise, permutations

from hypothesis import strategies as st
from uellm_deployer.domain.helr.cost import INFINITE, Pricing
from uellm_deployer.domain.helr.problem import Constraints, Device, Link, Model, Part, Problem, Workload


@dataclass(frozen=True)
class Plan:
    """One copy, priced stage by stage. Picoseconds."""

    devices: frozenset[int]
    latency: int
    bottleneck: int
    prefill: int
    interval: int


def every_plan(problem: Problem) -> list[Plan]:
    """Each that the constraints allow and that fits: all groups, orders and splits."""
    pricing, plans = Pricing(problem), []
    for groups in _sequences(problem, pricing):
        curves = [pricing.curves(group) for group in groups]
        hops = [pricing.hop(a, b) for a, b in pairwise(groups)]
        if any(decode >= INFINITE for decode, _ in hops):
            continue
        for cuts in _splits(len(problem.model.layers), len(groups), problem.constraints):
            ranges = list(zip(curves, cuts[:-1], cuts[1:], strict=True))
            if any(c.bytes_of(a, b) > c.capacity for c, a, b in ranges):
                continue
            stages = [int(c.decode[b] - c.decode[a]) for c, a, b in ranges]
            latency = sum(stages) + sum(decode for decode, _ in hops)
            bottleneck = max([*stages, *(decode for decode, _ in hops)])
            plans.append(
                Plan(
                    devices=frozenset(device for group in groups for device in group),
                    latency=latency,
                    bottleneck=bottleneck,
                    prefill=sum(int(c.prefill[b] - c.prefill[a]) for c, a, b in ranges) + sum(p for _, p in hops),
                    interval=max(bottleneck, -(-latency // problem.workload.micro_batches)),
                )
            )
    return plans


def _sequences(problem: Problem, pricing: Pricing) -> Iterator[tuple[tuple[int, ...], ...]]:
    rules, numbers = problem.constraints, range(len(problem.devices))
    ids = rules.device_ids
    usable = [n for n in numbers if ids is None or problem.devices[n].id in ids]
    groups = [
        group
        for size in set(rules.tensor_sizes)
        for group in combinations(usable, size)
        if size == 1 or pricing.can_group(group)
    ]
    for count in range(1, min(len(usable), rules.max_stages or len(usable)) + 1):
        for sequence in permutations(groups, count):
            members = [device for group in sequence for device in group]
            if len(set(members)) < len(members):
                continue
            if rules.uniform_tensor_size and len({len(group) for group in sequence}) > 1:
                continue
            if not rules.order_is_free and members != sorted(members):
                continue
            yield sequence


def _splits(layers: int, stages: int, rules: Constraints) -> Iterator[tuple[int, ...]]:
    for cuts in combinations(range(1, layers), stages - 1):
        borders = (0, *cuts, layers)
        if all(rules.min_layers <= b - a <= (rules.max_layers or layers) for a, b in pairwise(borders)):
            yield borders


def best_lr(plans: list[Plan]) -> tuple[int, ...]:
    """LR, devices, bottleneck."""
    return min((plan.latency, len(plan.devices), plan.bottleneck) for plan in plans)


def best_he(problem: Problem, plans: list[Plan]) -> tuple[int, ...]:
    """Devices, their free memory, LR, bottleneck."""
    free = [device.free_bytes for device in problem.devices]
    return min((len(p.devices), sum(free[d] for d in p.devices), p.latency, p.bottleneck) for p in plans)


def best_kept(problem: Problem, plans: list[Plan], first: int, output: int) -> tuple[int, ...] | None:
    """Devices, LR, bottleneck of the cheapest that keeps both."""
    flying = problem.workload.micro_batches
    kept = [p for p in plans if p.prefill <= first and max(p.latency, flying * p.bottleneck) <= output]
    return min(((len(p.devices), p.latency, p.bottleneck) for p in kept), default=None)


def best_helr(problem: Problem, plans: list[Plan], slack: Fraction) -> tuple[int, Fraction, int]:
    """LR, bottleneck, devices, from every set of copies on disjoint devices."""
    by_devices: dict[frozenset[int], list[Plan]] = {}
    for plan in plans:
        by_devices.setdefault(plan.devices, []).append(plan)
    sets = [s for s in _disjoint(sorted(by_devices, key=sorted)) if len(s) <= (problem.constraints.max_copies or 99)]
    least = min(Fraction(max(min(p.interval for p in by_devices[d]) for d in s), len(s)) for s in sets)
    admitted = (1 + slack) * least
    latency = INFINITE
    for chosen in sets:
        ways = [[p.latency for p in by_devices[d] if p.interval <= admitted * len(chosen)] for d in chosen]
        if all(ways):
            latency = min(latency, max(map(min, ways)))
    ranked = []
    for chosen in sets:
        ways = [[p.interval for p in by_devices[d] if p.latency <= latency] for d in chosen]
        if all(ways):
            ranked.append((latency, Fraction(max(map(min, ways)), len(chosen)), sum(map(len, chosen))))
    return min(ranked)


def _disjoint(sets: list[frozenset[int]]) -> list[tuple[frozenset[int], ...]]:
    """All choices of one or more of them that share nothing."""
    found: list[tuple[frozenset[int], ...]] = [()]
    for extra in sets:
        found += [(*chosen, extra) for chosen in found if not any(extra & other for other in chosen)]
    return found[1:]


GIB = 1 << 30


def _repeating(part: Part, whole: int, keys: int) -> Part:
    """With weights that the members of a group repeat."""
    whole = min(whole, part.weight_bytes)
    return replace(part, whole_bytes=whole, kv_weight_bytes=min(keys, part.weight_bytes - whole))


def part(gib: float, *, kv_gib: float = 0.0, flops: float = 1e9, all_reduces: int = 2) -> Part:
    """A part that reads all that it holds."""
    weights, cache = int(gib * GIB), int(kv_gib * GIB)
    return Part(weights, cache, weights, cache, flops, all_reduces)


def model(layers: int, gib: float = 1.0, **figures: object) -> Model:
    """Equal layers, no embedding, no head."""
    return replace(Model((part(gib),) * layers), **figures)  # type: ignore[arg-type]


def machine(
    count: int,
    *,
    gib: float = 80.0,
    bandwidth: float = 2e12,
    link: float = 200e9,
    latency: float = 10e-6,
    groups: bool = False,
    nodes: int = 1,
) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Equal devices; all links equal, or a tenth as fast between nodes."""
    each = count // nodes
    devices = tuple(Device(f"gpu{n}", int(gib * GIB), bandwidth, 300e12, node=n // each) for n in range(count))
    links = tuple(
        Link(a.id, b.id, link, latency, groups) if a.node == b.node else Link(a.id, b.id, link / 10, 2 * latency)
        for a, b in combinations(devices, 2)
    )
    return devices, links


sizes = st.integers(1, 8)


@st.composite
def problems(draw: st.DrawFn, devices: int = 5, layers: int = 10) -> Problem:
    """Anything small; figures from few values, so that there are equal devices and ties."""
    count = draw(st.integers(1, devices))
    rates = st.sampled_from([1e9, 2e9, 3e9])
    figures = [
        Device(
            id=f"d{n}",
            free_bytes=draw(st.integers(6, 44)),
            bandwidth=draw(rates),
            flops=draw(rates),
            reserve_bytes=draw(st.integers(0, 2)),
        )
        for n in range(count)
    ]
    if draw(st.booleans()):
        figures = [replace(figures[n % 2 % count], id=f"d{n}") for n in range(count)]
    speeds = draw(st.lists(st.sampled_from([1e9, 4e9]), min_size=1, max_size=2))
    links = [
        Link(a.id, b.id, draw(st.sampled_from(speeds)), draw(st.sampled_from([0.0, 1e-9])), draw(st.booleans()))
        for a, b in combinations(figures, 2)
        if len(speeds) > 1 or draw(st.integers(0, 9)) > 0
    ]
    parts = st.builds(
        Part,
        weight_bytes=sizes,
        kv_bytes=st.integers(0, 3),
        read_bytes=sizes,
        kv_read_bytes=st.integers(0, 2),
        flops_per_token=st.integers(0, 9).map(float),
        all_reduces=st.integers(0, 2),
    )
    parts = st.builds(_repeating, parts, st.integers(0, 3), st.integers(0, 3))
    chain = draw(st.lists(parts, min_size=1, max_size=layers))
    if draw(st.booleans()):
        chain = [chain[0]] * len(chain)
    embedding, head = draw(parts), draw(parts)
    shared = draw(st.integers(0, min(embedding.weight_bytes, head.weight_bytes)))
    return Problem(
        model=Model(tuple(chain), embedding, head, shared, draw(st.integers(0, 2)), draw(st.integers(1, 4))),
        workload=Workload(
            rows=draw(st.integers(1, 3)),
            prompt_tokens=draw(st.integers(1, 20)),
            micro_batches=draw(st.integers(1, 4)),
            decode_hop_bytes=draw(st.integers(0, 8)),
            prefill_hop_bytes=draw(st.integers(0, 80)),
        ),
        devices=tuple(figures),
        links=tuple(links),
        constraints=Constraints(
            tensor_sizes=draw(st.sampled_from([(1,), (1,), (1,), (1, 2), (1, 2), (1, 2, 4), (2,)])),
            uniform_tensor_size=draw(st.booleans()),
            order_is_free=draw(st.integers(0, 3)) > 0,
            min_layers=draw(st.sampled_from([1, 1, 1, 2])),
            max_layers=draw(st.sampled_from([None, None, None, 2, 4])),
            max_stages=draw(st.sampled_from([None, None, 2, 3])),
            max_copies=draw(st.sampled_from([None, None, 1, 2])),
        ),
    )
