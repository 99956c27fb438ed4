"""The monitor's rounds: what is shown and recommended when steps are slow, or when load outgrows a deployment."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from uellm_deployer.adapters.metrics import Metrics
from uellm_deployer.app.creation import Creation
from uellm_deployer.app.monitor import ADVICE_IN_WINDOW
from uellm_deployer.app.operations import Request
from uellm_deployer.domain.advice import Cause
from uellm_deployer.domain.deployment import State, Strategy
from uellm_deployer.domain.placement import HelrPlanner
from uellm_deployer.domain.recommendation import Recommendation

from tests.support.deployer import CPU, GIB, DeployerWorld, a_spec, gpu, machine
from tests.support.monitoring import WINDOW, MonitorWorld
from uellm.rpc.errors import UnavailableError
from uellm.v1 import deployer_pb2 as pb

ONE = "deployments/one"


@pytest.fixture
async def watched(tmp_path) -> MonitorWorld:
    """A deployment of 8 rows on the first of two GPUs."""
    world = DeployerWorld(tmp_path)
    world.machine.topology = machine(gpu("gpu0"), gpu("gpu1"))
    assert (await world.create("one", dtype="float32")).failure is None
    return MonitorWorld(world)


def recommended(watched: MonitorWorld, name: str = ONE) -> Recommendation | None:
    return watched.world.book.recommendations.get(name)


async def carry_out(watched: MonitorWorld, recommendation: Recommendation, name: str) -> None:
    """As the client would."""
    creation = Creation(name, recommendation.plan.spec, recommendation.candidate.strategy)
    operation = await watched.world.finish(watched.world.creation.create(creation, Request("", "")))
    assert operation.failure is None
    made = watched.world.book.deployment(f"deployments/{name}")
    assert made.plan.plan_hash == recommendation.plan.plan_hash, "what was recommended is what is made"


async def test_nothing_is_recommended_while_the_plan_holds(watched):
    watched.feedback.factors[ONE] = 1.2
    await watched.looks(2 * WINDOW, waiting=7, growth=0.5)
    assert recommended(watched) is None
    (status,) = watched.gauges.deployments
    assert (status.serves, status.troubles, status.recommended) == (True, frozenset(), False)
    assert status.performance.measured_seconds == pytest.approx(1.2 * status.performance.predicted_seconds)
    assert watched.gauges.loads == {}, "the next batch takes all that wait"


async def test_a_device_three_times_slower_leads_to_the_other_one_and_there_it_is_right(watched):
    watched.feedback.factors[ONE] = 3
    await watched.looks(5)
    found = recommended(watched)
    assert (set(found.plan.needs), found.candidate.strategy) == ({"gpu1"}, Strategy.BLUE_GREEN)
    assert found.plan.spec.device_ids == ("gpu1",), "else it would be placed as before"
    assert "3 times the" in found.reason
    assert watched.gauges.deployments[0].recommended
    await carry_out(watched, found, "two")
    watched.feedback.factors["deployments/two"] = 1
    await watched.looks(5)
    assert watched.world.book.recommendations == {}
    assert [one.troubles for one in watched.gauges.deployments] == [frozenset()]


async def test_who_watches_is_told_once(watched):
    book, seen = watched.world.book, []

    async def watch() -> None:
        async for standing in book.watch(ONE):
            seen.append(standing.recommendation)

    watching = asyncio.create_task(watch())
    await watched.looks(20)
    watched.feedback.factors[ONE] = 3
    await watched.looks(WINDOW)
    watched.feedback.factors[ONE] = 3.1
    await watched.looks(WINDOW)
    watched.feedback.factors[ONE] = 1
    await watched.looks(20)
    book.close()
    await watching
    first, told, last = seen
    assert (first, last) == (None, None)
    assert "3 times the" in told.reason


async def test_a_watch_streams_it(watched):
    watched.feedback.factors[ONE] = 3
    await watched.looks(5)
    updates = watched.world.servicer().WatchDeployment(pb.WatchDeploymentRequest(name=ONE), None)
    update = await anext(updates)
    await updates.aclose()
    assert update.recommendation.reason == recommended(watched).reason
    assert update.recommendation.plan.plan_hash == recommended(watched).plan.plan_hash


async def test_without_another_device_it_is_a_warning_in_words(watched, capsys):
    watched.world.machine.topology = machine(gpu("gpu0"))
    watched.feedback.factors[ONE] = 3
    await watched.looks(2 * WINDOW)
    assert recommended(watched) is None
    assert watched.gauges.deployments[0].troubles == {Cause.STEP_TIME}
    lines = [line for line in capsys.readouterr().out.splitlines() if "off its plan" in line]
    assert len(lines) == 1, "said once"
    assert "it is where it should be, on gpu0" in lines[0]


async def test_a_device_that_another_deployment_found_slow_is_not_where_to_go(watched):
    watched.world.machine.topology = machine(gpu("gpu0"), gpu("gpu1"), gpu("gpu2", free_gib=2))
    for name, device in (("two", "gpu1"), ("three", "gpu2")):
        spec = {"model": name, "dtype": "float32", "max_batch_rows": 2, "device_ids": (device,)}
        assert (await watched.world.create(name, **spec)).failure is None
    watched.feedback.factors = {ONE: 3, "deployments/two": 3}
    await watched.looks(5)
    assert recommended(watched) is None, "gpu1 is as slow, gpu2 has no room"
    watched.feedback.factors = {ONE: 3, "deployments/two": 1.2}
    await watched.looks(WINDOW)
    assert set(recommended(watched).plan.needs) == {"gpu1"}
    assert "beside deployments/two" in recommended(watched).reason


async def test_load_that_grows_asks_for_more_rows_then_there_is_room(watched):
    await watched.looks(WINDOW, growth=0.5, waiting=30)
    assert recommended(watched) is None, "not before it has lasted"
    await watched.looks(10, growth=0.5, waiting=30)
    found = recommended(watched)
    assert (found.plan.spec.max_batch_rows, set(found.plan.needs)) == (16, {"gpu0"})
    assert found.candidate.strategy is Strategy.BLUE_GREEN
    assert "150% of what can be served" in found.reason
    await carry_out(watched, found, "two")
    await watched.looks(WINDOW, growth=-0.2, waiting=30)
    assert watched.world.book.recommendations == {}, "the load counts anew"


async def test_without_an_owner_the_load_is_not_known_any_more(watched):
    await watched.looks(WINDOW + 10, growth=0.5, waiting=30)
    assert recommended(watched) is not None
    watched.feedback.states.clear()
    await watched.looks(WINDOW - 10)
    assert recommended(watched) is not None, "an owner is lost and replaced in less"
    await watched.looks(20)
    assert recommended(watched) is None


async def test_plans_are_searched_for_a_few_times_a_window_only(watched, monkeypatch):
    calls, place = [], HelrPlanner.place
    monkeypatch.setattr(HelrPlanner, "place", lambda *asked: calls.append(asked) or place(*asked))
    await watched.looks(WINDOW)
    assert not calls, "nothing is wrong"
    watched.feedback.factors[ONE] = 3
    await watched.looks(WINDOW)
    assert len(calls) == 2 * ADVICE_IN_WINDOW, "the devices, and the plan as it would be made on them"


async def test_without_room_for_both_the_gap_is_said(watched):
    watched.world.machine.topology = machine(gpu("gpu0", free_gib=3.6))
    await watched.looks(WINDOW + 10, growth=0.5, waiting=30)
    found = recommended(watched)
    assert (found.candidate.strategy, found.plan.spec.max_batch_rows) == (Strategy.RECREATE, 16)
    assert "nothing serves for a while" in found.reason


async def test_rows_do_not_help_where_steps_grow_with_them_but_a_copy_does(watched):
    """On a CPU whose steps take as long as they have rows; another one is free."""
    world = watched.world
    world.machine.topology = machine(CPU, replace(CPU, id="cpu1"))
    await world.delete(ONE)
    spec = {"dtype": "float32", "max_batch_rows": 512, "context_tokens": 64, "device_ids": ("cpu0",)}
    assert (await world.create("one", **spec)).failure is None
    await watched.looks(WINDOW + 10, growth=0.3, waiting=2000)
    assert recommended(watched) is None, "device_ids keep it to cpu0"
    one = replace(world.book.deployment(ONE), plan=replace(world.book.deployment(ONE).plan))
    plan = replace(one.plan, spec=replace(one.plan.spec, device_ids=()))
    world.book.deployments[ONE] = replace(one, plan=plan)
    await watched.looks(WINDOW + 10, growth=0.3, waiting=2000)
    found = recommended(watched)
    assert (found.candidate.strategy, set(found.plan.needs)) == (Strategy.BESIDE, {"cpu1"})
    assert "SetTraffic" in found.reason
    await carry_out(watched, found, "copy")


async def test_of_several_that_serve_a_queue_the_slow_one_is_replaced_beside_the_others(watched):
    world = watched.world
    world.machine.topology = machine(gpu("gpu0"), gpu("gpu1"), gpu("gpu2"))
    creation = Creation("two", a_spec(dtype="float32", device_ids=("gpu1",)), Strategy.BESIDE)
    assert (await world.finish(world.creation.create(creation, Request("", "")))).failure is None
    watched.feedback.factors = {ONE: 3, "deployments/two": 1}
    await watched.looks(10)
    assert recommended(watched).candidate.strategy is Strategy.BLUE_GREEN, "the other has no traffic"
    await world.traffic.set("smol", {ONE: 0.5, "deployments/two": 0.5})
    await watched.looks(WINDOW)
    found = recommended(watched)
    assert (found.candidate.strategy, set(found.plan.needs)) == (Strategy.BESIDE, {"gpu2"})
    assert "DeleteDeployment of deployments/one" in found.reason


async def test_while_a_queue_is_being_changed_nothing_is_said_of_it(watched):
    book = watched.world.book
    draining = replace(book.deployment(ONE), name="deployments/old", state=State.DRAINING)
    book.deployments[draining.name] = draining
    watched.feedback.factors[ONE] = 3
    await watched.looks(20)
    assert recommended(watched) is None
    del book.deployments[draining.name]
    await watched.looks(5)
    assert recommended(watched) is not None


async def test_what_is_gone_is_forgotten(watched):
    watched.feedback.factors[ONE] = 3
    await watched.looks(5)
    await watched.world.delete(ONE)
    assert watched.world.book.recommendations == {}
    await watched.looks(5)
    assert watched.gauges.deployments == []


async def test_without_redis_and_triton_the_rest_is_shown(watched):
    watched.feedback.away = True
    watched.world.faults.arm("index", UnavailableError("Triton is away"), always=True)
    with pytest.raises(UnavailableError):
        await watched.monitor.look()
    assert [one.device.id for one in watched.gauges.devices] == ["gpu0", "gpu1"]
    assert [one.serves for one in watched.gauges.deployments] == [False]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.3, 6), min_size=1, max_size=6))
def test_no_recommendation_flaps_whatever_is_measured(tmp_path_factory, factors):
    """It changes only where the deviation crosses a limit: between the limits and after them all stays."""

    async def run() -> None:
        world = DeployerWorld(tmp_path_factory.mktemp("world"))
        world.machine.topology = machine(gpu("gpu0"), gpu("gpu1"))
        await world.create("one", dtype="float32")
        watched = MonitorWorld(world)
        expected = False
        for factor in factors:
            watched.feedback.factors[ONE] = factor
            expected = factor > 1.25 if expected else 0.95 * factor > 1.5
            await watched.looks(15)
            assert (recommended(watched) is not None) is expected
        world.repository.close()

    asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(
    st.floats(1.6, 6), st.floats(1, 4), st.lists(st.floats(1e11, 6e12), min_size=1, max_size=3), st.floats(0.0005, 0.02)
)
def test_more_deviation_never_removes_it_whatever_else_there_is(tmp_path_factory, factor, more, bandwidths, trial):
    async def run(*factors: float) -> bool:
        world = DeployerWorld(tmp_path_factory.mktemp("world"))
        world.machine.topology = machine(
            gpu("gpu0"), *(gpu(f"gpu{at}", 80, one) for at, one in enumerate(bandwidths, 1))
        )
        world.triton.report = replace(world.triton.report, step_seconds=trial)
        await world.create("one", dtype="float32", device_ids=("gpu0",))
        one = world.book.deployments[ONE]
        anywhere = replace(one.plan, spec=replace(one.plan.spec, device_ids=()))
        world.book.deployments[ONE] = replace(one, plan=anywhere)
        watched = MonitorWorld(world)
        for value in factors:
            watched.feedback.factors[ONE] = value
            await watched.looks(WINDOW / ADVICE_IN_WINDOW + 10)
        world.repository.close()
        return recommended(watched) is not None

    if asyncio.run(run(factor)):
        assert asyncio.run(run(factor, factor * more))
        assert asyncio.run(run(factor * more))


async def test_the_metrics_have_every_figure(watched):
    watched.feedback.factors[ONE] = 3
    await watched.looks(WINDOW + 10, growth=0.5, waiting=30)
    metrics, registry = Metrics(), CollectorRegistry()
    registry.register(metrics)
    metrics.show(watched.gauges.devices, watched.gauges.deployments, watched.gauges.loads)
    text = generate_latest(registry).decode()
    needs = watched.world.book.deployment(ONE).plan.needs["gpu0"]
    device, deployment = 'device="gpu0",kind="gpu",model="a GPU"', f'deployment="{ONE}",model="smol"'
    for name, labels, value in (
        ("device_memory_bytes", device, 80 * GIB),
        ("device_memory_used_bytes", device, 0),
        ("device_memory_free_bytes", device, 80 * GIB),
        ("device_memory_promised_bytes", device, needs),
        ("device_utilisation_ratio", device, 0.5),
        ("deployment_state", deployment + ',state="ready"', 1),
        ("deployment_state", deployment + ',state="failed"', 0),
        ("deployment_serves", deployment, 1),
        ("deployment_traffic_share", deployment, 1),
        ("deployment_off_plan", 'cause="step_time",' + deployment, 1),
        ("deployment_off_plan", 'cause="load",' + deployment, 1),
        ("deployment_recommendation", deployment, 1),
        ("queue_offered_load_ratio", 'queue="smol"', 1.5),
    ):
        found = [line for line in text.splitlines() if line.startswith(f"uellm_{name}{{")]
        sample = [float(line.rpartition(" ")[2]) for line in found if _labels(line) == sorted(labels.split(","))]
        assert sample == [pytest.approx(value)], (name, found)
    metrics.show((), (), {})
    assert "{" not in generate_latest(registry).decode(), "what is gone vanishes"


def _labels(line: str) -> list[str]:
    return sorted(line.partition("{")[2].rpartition("}")[0].split(","))
