"""How long a placement takes, and what it gains over rules of others; JSON lines.

    python -m benchmarks.placement.plan_time

Machines and models are made up here, in the sizes of real ones; each is solved once for every goal.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

from uellm_deployer.domain import topology
from uellm_deployer.domain.facts import model_shape
from uellm_deployer.domain.helr.cost import PER_SECOND, Pricing
from uellm_deployer.domain.helr.problem import Constraints, Device, Goal, Link, Model, Part, Problem, Workload
from uellm_deployer.domain.helr.solve import solve
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentSpec, Objective
from uellm_deployer.domain.topology import Topology

from benchmarks.placement.baselines import BASELINES
from benchmarks.placement.cases import MODELS, llama

GB = 10**9
LOAD = Workload(8, 1024, 4, 8 * 8192 * 2, 1024 * 8192 * 2)


def dense(layers: int, layer_gb: float) -> Model:
    """A dense decoder in half precision with its cache."""
    weights, cache, matrix = int(layer_gb * GB), GB // 2, 2 * GB
    layer = Part(weights, cache, weights, cache // 2, weights, all_reduces=2)
    embedding, head = Part(matrix, read_bytes=1 << 17, all_reduces=1), Part(matrix, 0, matrix, 0, matrix, all_reduces=1)
    return Model((layer,) * layers, embedding, head, activation_bytes=GB, kv_heads=8)


def alike(count: int, nodes: int) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """Equal devices, all linked within a node; nodes are linked more slowly."""
    devices = tuple(
        Device(f"gpu{n}", 79 * GB, 2e12, 312e12, 2 * GB, 0.8, 0.5, n * nodes // count) for n in range(count)
    )
    near, far = (300e9, 10e-6, True), (25e9, 20e-6, False)
    return devices, tuple(Link(a.id, b.id, *(near if a.node == b.node else far)) for a, b in combinations(devices, 2))


def different(count: int, draw: random.Random) -> tuple[tuple[Device, ...], tuple[Link, ...]]:
    """No two devices alike, and links of all classes."""
    devices = tuple(
        Device(
            f"gpu{n}", draw.choice([24, 40, 48, 80]) * GB + n, draw.uniform(0.6, 3) * 1e12, draw.uniform(60, 900) * 1e12
        )
        for n in range(count)
    )
    links = tuple(
        Link(a.id, b.id, draw.choice([16, 32, 64, 200]) * 1e9, draw.uniform(5e-6, 2e-5), draw.random() < 0.5)
        for a, b in combinations(devices, 2)
    )
    return devices, links


def cases() -> Iterator[tuple[str, Problem]]:
    """Each size with single devices and with groups."""
    for sizes in ((1,), (1, 2, 4, 8)):
        rules, text = Constraints(tensor_sizes=sizes), f"groups of {sizes}"
        yield f"80 layers, 8 different, {text}", Problem(dense(80, 1.7), LOAD, *different(8, random.Random(1)), rules)
        yield f"80 layers, 16 alike, {text}", Problem(dense(80, 1.7), LOAD, *alike(16, 1), rules)
        yield f"80 layers, 16 in 2 nodes, {text}", Problem(dense(80, 1.7), LOAD, *alike(16, 2), rules)
        pairs, links = alike(16, 8)
        paired = tuple(replace(device, node=0) for device in pairs)
        yield f"80 layers, 16 in 8 pairs, {text}", Problem(dense(80, 1.7), LOAD, paired, links, rules)
        yield f"126 layers, 64 in 8 nodes, {text}", Problem(dense(126, 6.4), LOAD, *alike(64, 8), rules)


def baselines(problem: Problem) -> dict[str, dict[str, float] | None]:
    """LR and interval of the rules of others; None where a plan does not fit."""
    pricing, found = Pricing(problem), dict[str, dict[str, float] | None]()
    for name, rule in BASELINES.items():
        plan = rule(pricing)
        fits = plan is not None and not pricing.missing_bytes(plan)
        found[name] = None
        if fits and plan is not None:
            price = pricing.price(plan)
            found[name] = {"lr_ms": 1e3 * price.latency / PER_SECOND, "ms": 1e3 * price.interval / PER_SECOND}
    return found


def machine(devices: Iterable[Device], links: Iterable[Link]) -> Topology:
    """The same as the deployer sees it."""
    gpus = tuple(
        topology.Device(
            one.id, topology.DeviceKind.GPU, "", one.free_bytes, one.free_bytes, one.bandwidth, one.flops, one.node
        )
        for one in devices
    )
    joined = (
        topology.Link(one.device_a, one.device_b, "NV12" if one.groups else "SYS", one.bandwidth, 1e-5, one.groups)
        for one in links
    )
    return Topology(gpus, tuple(joined), "made up")


def planned() -> Iterator[tuple[str, dict[str, Any], Topology]]:
    """What a user plans: models with their configs, machines as a whole."""
    large = llama(126, 16384, 53248, 128, 8, 131072) | {"vocab_size": 128256}
    yield "70B on 8 different", MODELS["70B"], machine(*different(8, random.Random(1)))
    yield "70B on 16 alike", MODELS["70B"], machine(*alike(16, 1))
    yield "126 layers on 64 in 8 nodes", large, machine(*alike(64, 8))


def measure_planner() -> None:
    """What a user waits for: the plan with its alternatives, and what other machines would give."""
    for name, config, there in planned():
        shape = model_shape(config, (), "")
        for objective in Objective:
            spec = DeploymentSpec(name, "", objective=objective, max_batch_rows=8, context_tokens=4096)
            start, seconds = time.process_time(), list[float]()
            placed = HelrPlanner().place(spec, shape, there)
            seconds.append(time.process_time() - start)
            HelrPlanner().what_if(placed)
            seconds.append(time.process_time() - start - seconds[0])
            place, what_if = (round(one, 3) for one in seconds)
            row = {"planner": name, "objective": objective, "place_cpu_s": place, "what_if_cpu_s": what_if}
            stages = len(placed.plan.stages)
            print(json.dumps(row | {"stages": stages, "load": os.getloadavg()[0]}), flush=True)


def main() -> None:
    """Solve all."""
    measure_planner()
    for name, problem in cases():
        for goal in Goal:
            wall, processor = time.perf_counter(), time.process_time()
            placement = solve(problem, goal)
            row = {
                "case": name,
                "goal": goal,
                "wall_s": round(time.perf_counter() - wall, 3),
                "cpu_s": round(time.process_time() - processor, 3),
                "exact": placement.exact,
                "gap": placement.gap,
                "bottleneck_gap": placement.bottleneck_gap,
                "copies": len(placement.plan.copies),
                "stages": max(len(copy.stages) for copy in placement.plan.copies),
                "tensor_size": placement.plan.tensor_size,
                "lr_ms": 1e3 * placement.plan.latency_seconds,
                "bottleneck_ms": 1e3 * placement.plan.bottleneck_seconds,
            }
            if goal is Goal.HELR and len(problem.devices) <= 16:
                row["others"] = baselines(problem)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
