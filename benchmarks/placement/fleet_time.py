"""How long the plan of a fleet takes, and how close to its bound it comes; JSON lines.

    python -m benchmarks.placement.fleet_time

Models in the sizes of real ones are drawn with random shares, five times for each machine.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from itertools import combinations

from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.fleet.fleet import Member, Wanted, plan_fleet
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentSpec
from uellm_deployer.domain.topology import Device, DeviceKind, Link, Topology

from benchmarks.placement.cases import llama
from uellm.rpc.errors import ResourceExhaustedError

GIB = 1 << 30
SEEDS = 5
SIZES = {  # layers, hidden size, feed-forward size, heads, key-value heads
    "1b": (16, 2048, 8192, 32, 8),
    "8b": (32, 4096, 14336, 32, 8),
    "13b": (40, 5120, 13824, 40, 40),
    "34b": (48, 8192, 22016, 64, 8),
    "70b": (80, 8192, 28672, 64, 8),
}


def shape(name: str) -> ModelShape:
    """A Llama of that size."""
    return model_shape(llama(*SIZES[name]), (), name)


def machine(count: int, nodes: int, draw: random.Random | None) -> Topology:
    """GPUs that are alike, or no two of them; NVLink within a node."""

    def gpu(number: int) -> Device:
        memory = (draw.choice([40, 48, 80]) if draw else 80) * GIB + (number if draw else 0)
        bandwidth = draw.uniform(0.8, 3.3) * 1e12 if draw else 2e12
        node = number * nodes // count
        return Device(f"gpu{number}", DeviceKind.GPU, "a GPU", memory, memory, bandwidth, 312e12, node)

    devices = tuple(map(gpu, range(count)))
    links = tuple(
        Link(a.id, b.id, "NV12", 300e9, 2e-6, peer_access=True)
        if a.numa_node == b.numa_node
        else Link(a.id, b.id, "SYS", 12e9, 2e-5, peer_access=False)
        for a, b in combinations(devices, 2)
    )
    return Topology(devices, links, "made up")


def fleets() -> Iterator[tuple[str, Topology, list[str]]]:
    """Name of the case, machine, sizes of the members."""
    every, small = ["1b", "8b", "8b", "13b", "34b", "70b"], ["1b", "8b", "13b"]
    for seed in range(SEEDS):
        draw = random.Random(seed)
        yield "8 alike, 6 members", machine(8, 1, None), draw.choices(every, k=6)
        yield "16 alike in 2 nodes, 8 members", machine(16, 2, None), draw.choices(every, k=8)
        yield "8 no two alike, 6 members", machine(8, 2, draw), draw.choices(every, k=6)
        yield "2 alike, 6 small members", machine(2, 1, None), draw.choices(small, k=6)
        yield "4 alike, 9 small members", machine(4, 1, None), draw.choices(small, k=9)


def main() -> None:
    """Measure."""
    for seed, (case, topology, sizes) in enumerate(fleets()):
        draw = random.Random(seed)
        weights = [draw.uniform(0.2, 1) for _ in sizes]
        members = [
            Member(Wanted(DeploymentSpec(f"m{n}", f"/{n}", context_tokens=2048), weight / sum(weights)), shape(size))
            for n, (size, weight) in enumerate(zip(sizes, weights, strict=True))
        ]
        began = time.process_time()
        row: dict[str, object] = {"case": case, "sizes": " ".join(sizes)}
        try:
            fleet = plan_fleet(HelrPlanner(), members, topology)
            row["below_bound"] = round(1 - fleet.tokens_per_second / fleet.tokens_per_second_bound, 4)
        except ResourceExhaustedError as error:
            row["refused"] = error.reason
        print(json.dumps(row | {"processor_seconds": round(time.process_time() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
