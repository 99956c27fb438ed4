"""Several models on one machine: who gets what, that it can be deployed as planned, and what is refused how."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from uellm_deployer.app.ports import EngineReport
from uellm_deployer.domain.facts import ModelShape, model_shape
from uellm_deployer.domain.fleet.fleet import Fleet, Member, Wanted, plan_fleet
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.plan import DeploymentPlan, Objective
from uellm_deployer.domain.topology import Device, Link, Topology, with_twin

from tests.support.deployer import CONFIG, CPU, GIB, SHAPE, DeployerWorld, a_spec, gpu, machine
from uellm.rpc.errors import InvalidArgumentError, ResourceExhaustedError
from uellm.v1 import deployer_pb2 as pb

LLAMA_8B = model_shape(
    CONFIG
    | {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    (),
    "8",
)
"""In half precision 15 GiB of weights."""


def linked(*devices: Device, fast: str = "") -> Topology:
    """Over PCIe, but for the pair whose last letters are `fast`."""

    def link(a: Device, b: Device) -> Link:
        nvlink = {a.id[-1], b.id[-1]} == set(fast)
        return Link(
            a.id, b.id, "NV12" if nvlink else "SYS", 300e9 if nvlink else 10e9, 1e-6 if nvlink else 2e-5, nvlink
        )

    return Topology(devices, tuple(link(a, b) for a, b in combinations(devices, 2)), "test")


def plan(topology: Topology, *members: Member) -> Fleet:
    return plan_fleet(HelrPlanner(), members, topology)


def member(name: str, shape: ModelShape = SHAPE, share: float = 0.0, copies: int = 1, **spec: object) -> Member:
    wanted = a_spec(model=name, weights_path=f"/models/{name}", **spec)
    return Member(Wanted(wanted, share, copies), replace(shape, fingerprint=name))


def devices(fleet: Fleet) -> list[tuple[str, ...]]:
    return [tuple(device for stage in plan.stages for device in stage.device_ids) for plan in fleet.plans]


def promised(plans: list[DeploymentPlan]) -> dict[str, int]:
    return {device: sum(plan.needs.get(device, 0) for plan in plans) for one in plans for device in one.needs}


def test_two_models_take_one_gpu_each() -> None:
    fleet = plan(machine(gpu("GPU-a"), gpu("GPU-b"), CPU), member("one"), member("two"))
    assert sorted(devices(fleet)) == [("GPU-a",), ("GPU-b",)]
    alone = HelrPlanner().place(a_spec(), SHAPE, machine(gpu("GPU-a"))).plan
    assert fleet.tokens_per_second == pytest.approx(2 * 8 / alone.objective_seconds), "two at once, 8 rows a step"
    assert fleet.tokens_per_second_bound == pytest.approx(fleet.tokens_per_second, rel=1e-4)
    assert "no choice sustains more" in fleet.explanation


def test_three_small_models_share_the_one_gpu_there_is() -> None:
    fleet = plan(machine(gpu("GPU-a")), member("one"), member("two"), member("three"))
    assert devices(fleet) == [("GPU-a",)] * 3
    assert "bounded by GPU-a: one 33%, two 33%, three 33%" in fleet.explanation
    assert len({plan.triton_model for plan in fleet.plans}) == 3


def test_a_model_that_needs_two_gets_the_pair_with_nvlink() -> None:
    machine = linked(*(gpu(f"GPU-{one}", free_gib=14) for one in "abcd"), fast="bd")
    small, big = devices(plan(machine, member("small"), member("big", LLAMA_8B)))
    assert set(big) == {"GPU-b", "GPU-d"}
    assert len(small) == 1


@pytest.mark.parametrize("busy", ["left", "right"])
def test_the_share_decides_who_gets_the_faster_card(busy: str) -> None:
    shares = {name: 0.8 if name == busy else 0.2 for name in ("left", "right")}
    fleet = plan(
        machine(gpu("GPU-slow", bandwidth=1.5e12), gpu("GPU-fast", bandwidth=3e12)),
        *(member(name, share=share) for name, share in shares.items()),
    )
    taken = dict(zip(shares, devices(fleet), strict=True))
    assert taken == {name: ("GPU-fast",) if name == busy else ("GPU-slow",) for name in shares}


def test_one_of_three_equal_models_is_spread_over_two_gpus() -> None:
    """Two on one of them would leave the other one idle for half of the time."""
    topology = linked(gpu("GPU-a"), gpu("GPU-b"), fast="ab")
    fleet = plan(topology, *(member(name, LLAMA_8B) for name in ("x", "y", "z")))
    assert sorted(map(len, devices(fleet))) == [1, 1, 2]
    alone = HelrPlanner().place(a_spec(), LLAMA_8B, machine(gpu("GPU-a"))).plan.objective_seconds / 8
    assert 1 / fleet.tokens_per_second == pytest.approx(alone / 2, rel=0.05)
    assert "One more like GPU-" in fleet.explanation


@pytest.mark.parametrize("objective", [Objective.LR, Objective.HELR])
@pytest.mark.parametrize("free", [80, 14])
def test_a_fleet_of_one_is_the_plan_of_it(objective: Objective, free: float) -> None:
    topology = linked(*(gpu(f"GPU-{one}", free_gib=free) for one in "abc"), CPU, fast="bc")
    alone = HelrPlanner().place(a_spec(objective=objective), LLAMA_8B, topology).plan
    (planned,) = plan(topology, member("one", LLAMA_8B, objective=objective)).plans
    assert planned.objective_seconds == alone.objective_seconds
    assert len(planned.needs) == len(alone.needs)


def test_a_member_that_asks_for_few_devices_is_not_spread() -> None:
    topology = linked(gpu("GPU-a"), gpu("GPU-b"), fast="ab")
    fleet = plan(topology, *(member(name, LLAMA_8B, objective=Objective.HE) for name in ("x", "y", "z")))
    assert [len(one) for one in devices(fleet)] == [1, 1, 1]


def test_each_spec_makes_its_plan_again_beside_the_others_and_alone() -> None:
    topology = linked(*(gpu(f"GPU-{one}", free_gib=14) for one in "abcd"), CPU, fast="bd")
    members = [member("small", copies=2), member("big", LLAMA_8B), member("tiny", backend="vllm")]
    plans = list(plan(topology, *members).plans)
    shapes = [members[place].shape for place in (0, 0, 1, 2)]
    assert any(len(one.stages) > 1 for one in plans)
    for number, (planned, shape) in enumerate(zip(plans, shapes, strict=True)):
        others = promised(plans[:number] + plans[number + 1 :])
        for there in (others, promised(plans[:number]), {}):
            again = HelrPlanner().place(planned.spec, shape, topology.with_promised(there)).plan
            assert (again.stages, again.plan_hash) == (planned.stages, planned.plan_hash)
    assert all(
        promised(plans)[one.id] <= one.free_memory_bytes for one in topology.devices if one.id in promised(plans)
    )


def test_copies_stand_side_by_side_and_differ() -> None:
    topology = machine(*(gpu(f"GPU-{one}") for one in "abc"))
    fleet = plan(topology, member("one", share=0.75, copies=2), member("two", share=0.25))
    assert [one.spec.model for one in fleet.plans] == ["one", "one", "two"]
    assert len({one.triton_model for one in fleet.plans}) == 3
    assert set(devices(fleet)) == {("GPU-a",), ("GPU-b",), ("GPU-c",)}
    with pytest.raises(ResourceExhaustedError, match="one: 4 of 3") as caught:
        plan(topology, member("one", copies=4))
    assert caught.value.reason == "TOO_FEW_PLANS"


def test_equal_requests_have_equal_answers() -> None:
    topology = linked(*(gpu(f"GPU-{one}", free_gib=30) for one in "abc"), CPU)
    members = [member("x", LLAMA_8B), member("y", LLAMA_8B), member("z", copies=2)]
    assert plan(topology, *members) == plan(topology, *members)


def test_members_that_fit_alone_but_not_together_are_told_what_lacks() -> None:
    needed = HelrPlanner().place(a_spec(), SHAPE, machine(gpu("GPU-a"))).plan.needs["GPU-a"]
    room = replace(gpu("GPU-a"), free_memory_bytes=2 * needed - 7)
    with pytest.raises(ResourceExhaustedError) as caught:
        plan(machine(room), member("one"), member("two"))
    assert caught.value.reason == "OUT_OF_DEVICE_MEMORY"
    assert f"GPU-a lacks 7 of {2 * needed - 7:,} bytes free for one {needed:,} + two {needed:,}" in caught.value.message
    assert plan(machine(replace(room, free_memory_bytes=2 * needed)), member("one"), member("two"))


def test_the_member_that_cannot_be_is_named() -> None:
    topology = machine(gpu("GPU-a", free_gib=4))
    with pytest.raises(ResourceExhaustedError, match=r"members\[1\], big: big with 8 rows .* does not fit") as caught:
        plan(topology, member("one"), member("big", LLAMA_8B))
    assert caught.value.reason == "OUT_OF_DEVICE_MEMORY"
    with pytest.raises(ResourceExhaustedError, match=r"members\[1\], fast: no plan keeps") as caught:
        plan(topology, member("one"), member("fast", output_token_slo_seconds=1e-6))
    assert caught.value.reason == "SLO_UNREACHABLE"
    with pytest.raises(InvalidArgumentError) as wrong:
        plan(topology, member("one"), member("two", device_ids=("GPU-x",)))
    assert [violation.field for violation in wrong.value.violations] == ["members[1].spec.device_ids"]


def test_an_objective_for_time_keeps_a_member_off_the_slow_card() -> None:
    topology = machine(gpu("GPU-a", bandwidth=3e11), gpu("GPU-b"))
    free = plan(topology, member("one", share=0.05), member("two", share=0.95))
    assert devices(free) == [("GPU-a",), ("GPU-b",)]
    slo = HelrPlanner().place(a_spec(), SHAPE, machine(gpu("GPU-b"))).plan.objective_seconds * 1.5
    kept = plan(topology, member("one", share=0.05, output_token_slo_seconds=slo), member("two", share=0.95))
    assert devices(kept) == [("GPU-b",), ("GPU-b",)]


def test_stages_can_be_stated() -> None:
    topology = linked(gpu("GPU-a"), gpu("GPU-b"), gpu("GPU-c"), CPU)
    spec = a_spec(device_ids=("GPU-c", "GPU-a"), stage_layers=(10, 20))
    placed = HelrPlanner().place(spec, SHAPE, topology)
    assert [(stage.device_ids, stage.first_layer, stage.layer_count) for stage in placed.plan.stages] == [
        (("GPU-c",), 0, 10),
        (("GPU-a",), 10, 20),
    ]
    assert placed.plan.devices == ("cuda:2", "cuda:0")
    assert "divided as the spec says" in placed.plan.explanation
    assert placed.alternatives == ()
    assert HelrPlanner().what_if(placed) == ()
    slow = replace(spec, output_token_slo_seconds=1e-6)
    with pytest.raises(ResourceExhaustedError, match="no plan keeps"):
        HelrPlanner().place(slow, SHAPE, topology)
    with pytest.raises(ResourceExhaustedError, match="does not fit"):
        HelrPlanner().place(spec, SHAPE, topology.with_promised({"GPU-c": 79 * GIB}))


@pytest.mark.parametrize(
    ("pinned", "layers", "said"),
    [
        (("GPU-a", "GPU-b"), (10, 19), "must sum to the model's 30 layers; got 29"),
        (("GPU-a", "cpu0"), (10, 20), "must be on devices of one kind"),
        (("GPU-a", "GPU-b"), (30,), "must have as many devices each as layers can be shared by: 1"),
        (("GPU-a", "GPU-c"), (15, 15), "must follow links between the devices"),
    ],
)
def test_stages_that_cannot_be(pinned: tuple[str, ...], layers: tuple[int, ...], said: str) -> None:
    topology = linked(gpu("GPU-a"), gpu("GPU-b"), CPU)
    topology = replace(topology, devices=(*topology.devices, gpu("GPU-c")))
    with pytest.raises(InvalidArgumentError) as caught:
        HelrPlanner().place(a_spec(device_ids=pinned, stage_layers=layers), SHAPE, topology)
    assert [(one.field, one.description) for one in caught.value.violations] == [("spec.stage_layers", said)]


def test_a_twin_is_linked_as_the_device_is() -> None:
    larger = with_twin(linked(gpu("GPU-a"), gpu("GPU-b"), fast="ab"), "GPU-b")
    links = {frozenset((one.device_a, one.device_b)): one.link_class for one in larger.links}
    assert links[frozenset(("GPU-a", "GPU-b+"))] == links[frozenset(("GPU-b", "GPU-b+"))] == "NV12"
    assert len(larger.devices) == 3


def message(**changes: object) -> pb.FleetMember:
    spec = pb.DeploymentSpec(model="smol", weights_path="/models/smol", context_tokens=2048)
    return pb.FleetMember(**{"spec": spec} | changes)


async def test_a_servicer_plans_beside_what_is_deployed(tmp_path) -> None:
    world = DeployerWorld(tmp_path)
    world.machine.topology = machine(gpu("GPU-a"), gpu("GPU-b"))
    facts = SHAPE.facts(2)
    world.triton.report = EngineReport(facts.weight_bytes, facts.kv_bytes_per_token, 0.01)
    request = pb.PlanFleetRequest(members=[message()])
    first = await world.servicer().PlanFleet(request, None)
    (planned,) = first.plans
    assert planned.spec.device_ids == ["GPU-a"]
    await world.create("one", device_ids=("GPU-a",), dtype="float16", max_output_tokens=1024)
    assert world.book.deployment("deployments/one").plan.plan_hash == planned.plan_hash
    second = await world.servicer().PlanFleet(request, None)
    assert second.plans[0].spec.device_ids == ["GPU-b"], "this very plan is deployed"
    assert first.tokens_per_second > 0
    elsewhere = pb.PlanFleetRequest(
        members=[message(copies=2)],
        topology=pb.Topology(
            devices=[
                pb.Device(id=f"gpu{n}", kind="gpu", memory_bytes=80 * GIB, free_memory_bytes=80 * GIB) for n in range(2)
            ]
        ),
    )
    answer = await world.servicer().PlanFleet(elsewhere, None)
    assert {device for one in answer.plans for device in one.spec.device_ids} == {"gpu0", "gpu1"}


@pytest.mark.parametrize(
    ("members", "fields"),
    [
        ([], ["members"]),
        ([message(copies=65)], ["members"]),
        ([message(traffic_share=0.5)], ["members"]),
        ([message(traffic_share=1.5)], ["members[0].traffic_share", "members"]),
        (
            [message(), message(spec=pb.DeploymentSpec(model="smol", weights_path="here"))],
            ["members[1].spec.weights_path"],
        ),
        (
            [
                message(
                    spec=pb.DeploymentSpec(
                        model="smol", weights_path="/x", device_ids=["a", "b", "a"], stage_layers=[3, 0]
                    )
                )
            ],
            ["members[0].spec.device_ids", "members[0].spec.stage_layers"],
        ),
    ],
)
async def test_requests_are_checked(tmp_path, members: list[pb.FleetMember], fields: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await DeployerWorld(tmp_path).servicer().PlanFleet(pb.PlanFleetRequest(members=members), None)
    assert [violation.field for violation in caught.value.violations] == fields
