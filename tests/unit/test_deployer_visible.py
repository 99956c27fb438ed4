"""Which GPUs Triton sees decides what a plan may use, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from uellm_deployer.adapters.machine import SeenByTriton
from uellm_deployer.adapters.triton_host import FixedHost
from uellm_deployer.backends.common.visible import show_by_ordinal, visible_to_stub
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.topology import Device, Link, Topology
from uellm_deployer.domain.visible import visible

from tests.support.deployer import CPU, SHAPE, FakeMachine, a_spec, gpu
from uellm.rpc.errors import ResourceExhaustedError, UnavailableError

GPUS = [gpu(f"GPU-{letter}{letter}") for letter in "abcd"]
LINKS = tuple(Link(a.id, b.id, "NV12", 300e9, 2e-6, peer_access=True) for a, b in combinations(GPUS, 2))
MACHINE = Topology((*GPUS, CPU), LINKS, "test")


def seen(text: str | None, machine: Topology = MACHINE, **more: str) -> list[str]:
    environment = more if text is None else {"CUDA_VISIBLE_DEVICES": text, **more}
    return [device.id for device in visible(machine, environment).devices if device is not CPU]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (None, ["GPU-aa", "GPU-bb", "GPU-cc", "GPU-dd"]),
        ("", []),
        ("2", ["GPU-cc"]),
        ("3,1", ["GPU-dd", "GPU-bb"]),
        ("GPU-d, GPU-aa", ["GPU-dd", "GPU-aa"]),
        ("1,-1,2", ["GPU-bb"]),
        ("1,9,2", ["GPU-bb"]),
        ("GPU-,1", []),
        ("MIG-x", []),
        ("1,1", ["GPU-bb"]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(text, ids):
    assert seen(text) == ids


def test_links_and_names_follow():
    topology = visible(MACHINE, {"CUDA_VISIBLE_DEVICES": "3,1"})
    assert [(link.device_a, link.device_b) for link in topology.links] == [("GPU-bb", "GPU-dd")]
    assert [topology.framework_name(name) for name in ("GPU-dd", "GPU-bb", "cpu0")] == ["cuda:0", "cuda:1", "cpu"]
    assert topology.devices[-1] is CPU


def test_a_plan_keeps_to_what_is_seen():
    quick: list[Device] = [gpu("GPU-quick", bandwidth=9e12), *GPUS]
    hidden = visible(Topology((*quick, CPU), (), "test"), {"CUDA_VISIBLE_DEVICES": "4,2"})
    plan = HelrPlanner().place(a_spec(), SHAPE, hidden).plan
    assert (set(plan.needs), plan.devices) == ({"GPU-dd"}, ("cuda:0",))


@pytest.mark.parametrize(
    ("text", "order", "warned"),
    [("1", {}, True), ("1", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False), ("GPU-a", {}, False)],
)
def test_numbers_of_gpus_that_differ_are_doubtful(text, order, warned):
    other = Device("GPU-other", GPUS[0].kind, "another GPU", 1 << 30, 1 << 30)
    for machine, doubtful in ((Topology((other, *GPUS), (), "test"), warned), (MACHINE, False)):
        assert bool(visible(machine, {"CUDA_VISIBLE_DEVICES": text, **order}).warnings) is doubtful


async def test_the_host_tells(monkeypatch):
    machine = FakeMachine()
    machine.topology = MACHINE
    host = FixedHost("t:1", "2")
    assert [device.id for device in (await SeenByTriton(machine, host).read()).devices] == ["GPU-cc", "cpu0"]

    async def away() -> dict[str, str]:
        raise UnavailableError("the engine is gone")

    monkeypatch.setattr(host, "environment", away)
    topology = await SeenByTriton(machine, host).read()
    assert topology.devices == MACHINE.devices
    assert "the engine is gone" in topology.warnings[0]


@pytest.mark.parametrize(
    ("outer", "devices", "inner"),
    [
        ({}, ["cuda:1"], "1"),
        ({}, ["cuda:3", "cuda:0"], "3,0"),
        ({"CUDA_VISIBLE_DEVICES": "4,5"}, ["cuda:1", "cuda:0"], "5,4"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-x, GPU-y"}, ["cuda:1"], "GPU-y"),
    ],
)
def test_a_models_process_counts_within_what_triton_sees(outer, devices, inner):
    assert visible_to_stub(outer, devices) == inner


PARTS = [replace(gpu(f"MIG-{letter}", free_gib=20), parent_id="GPU-aa") for letter in "pq"]
DIVIDED = Topology(
    (*PARTS, GPUS[1], CPU),
    tuple(Link(a.id, b.id, "PHB", 10e9, 2e-6, peer_access=False) for a, b in combinations([*PARTS, GPUS[1]], 2)),
    "test",
)


def test_parts_of_a_gpu_are_named_by_their_uuid():
    assert [DIVIDED.framework_name(name) for name in ("MIG-q", "GPU-bb", "cpu0")] == [
        "cuda:MIG-q",
        "cuda:GPU-bb",
        "cpu",
    ]
    plan = HelrPlanner().place(a_spec(device_ids=("MIG-q",)), SHAPE, DIVIDED).plan
    assert plan.devices == ("cuda:MIG-q",)
    assert visible_to_stub({"CUDA_VISIBLE_DEVICES": "0"}, plan.devices) == "MIG-q"


def test_nothing_is_spread_over_parts_of_a_gpu():
    """Two of 20 GiB would hold half of it each, but no process sees both."""
    spec = a_spec(max_batch_rows=500)
    together = Topology((*(replace(part, parent_id="") for part in PARTS), CPU), DIVIDED.links[:1], "test")
    assert len(HelrPlanner().place(replace(spec, device_ids=("MIG-p", "MIG-q")), SHAPE, together).plan.needs) == 2
    with pytest.raises(ResourceExhaustedError):
        HelrPlanner().place(replace(spec, device_ids=("MIG-p", "MIG-q")), SHAPE, DIVIDED)


def test_what_is_named_by_uuid_is_made_the_only_thing_seen():
    environment: dict[str, str] = {}
    assert show_by_ordinal(environment, ["cpu", "cuda:1"]) == {"cpu": "cpu", "cuda:1": "cuda:1"}
    assert environment == {}
    assert show_by_ordinal(environment, ["cuda:MIG-q", "cuda:MIG-q"]) == {"cuda:MIG-q": "cuda:0"}
    assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-q"}
