"""The core learns what batches cost, publishes it, and goes on from what an earlier owner published."""

from __future__ import annotations

import random
from itertools import count, pairwise

import pytest
from prometheus_client import REGISTRY
from uellm_scheduler.app import effects as do
from uellm_scheduler.app import events as on
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.app.costs import PUBLISH_MS
from uellm_scheduler.app.metrics import Metrics
from uellm_scheduler.domain.backlog import predicted_work_seconds
from uellm_scheduler.policies import POLICIES

from tests.support.costs import PRIOR, TRUTH, random_batch
from tests.support.world import MODEL, deployment, submission
from uellm.messaging.queries import DispatchAnswer
from uellm.v1.stream_pb2 import CostModelState, DeploymentRecord, StepAggregates


def record(plan: str = "plan-1", name: str = "deployments/a") -> DeploymentRecord:
    made = deployment(name, rows=2)
    made.plan_hash = plan
    made.step_time_prior.CopyFrom(PRIOR.to_prior("roofline"))
    return made


class Shell:
    """Feeds a core, and has each batch end at once with what it cost."""

    def __init__(self, epoch: int = 1, records: tuple[DeploymentRecord, ...] | None = None) -> None:
        self.core = SchedulerCore(MODEL, epoch, POLICIES["fifo"])
        self.choice = random.Random(epoch)
        self.now_ms = 10_000
        self.numbers = count()
        self.published: list[tuple[int, CostModelState]] = []
        self.observations = []
        self.tell(on.DeploymentsChanged(records or (record(),)))

    def tell(self, event: on.Event) -> None:
        for effect in self.core.step(event, self.now_ms):
            match effect:
                case do.BeginAttempts():
                    answers = tuple(DispatchAnswer("ok", record=submission("x").record) for _ in effect.rows)
                    self.tell(on.AttemptsBegun(effect.batch_id, answers))
                case do.RunBatch():
                    self.batch = effect
                case do.FinishQueries():
                    self.observations += [row.observation for row in effect.rows]
                case do.PublishCostModels():
                    self.published += [(self.now_ms, state) for state in effect.states]

    def begin(self, rows: int = 1) -> do.RunBatch:
        numbers = [next(self.numbers) for _ in range(rows)]
        made = [submission(f"q{number}") for number in numbers]
        taken = [on.TakenQuery(one.name, f"{number}-0", one.entry) for number, one in zip(numbers, made, strict=True)]
        self.tell(on.QueriesTaken(tuple(taken)))
        return self.batch

    def end(self, batch: do.RunBatch, aggregates: StepAggregates | None) -> None:
        news = tuple(on.RowNews(row.name, 0, (1,), "a", "stop") for row in batch.rows)
        self.tell(on.EngineNews(batch.batch_id, news, aggregates))
        self.tell(on.BatchEnded(batch.batch_id))

    def run(self, rows: int = 1, after_ms: int = 0) -> StepAggregates:
        self.now_ms += after_ms
        made = random_batch(self.choice, rows=rows)
        self.end(self.begin(rows), made)
        return made

    @property
    def version(self) -> str:
        [view] = self.core.flight.views()
        return view.cost.version


def test_a_policy_sees_the_fit_once_there_is_one():
    shell = Shell()
    [before] = shell.core.flight.views()
    assert (before.cost.version, before.step_time) == ("prior/roofline", PRIOR)
    for _ in range(20):
        shell.run(after_ms=100)
    [after] = shell.core.flight.views()
    assert after.cost.version == "fit/20"
    assert after.step_time.base == pytest.approx(TRUTH.base, rel=0.1)
    shell.begin()
    waiting = submission("waiting")
    shell.tell(on.QueriesTaken((on.TakenQuery(waiting.name, "1-0", waiting.entry),)))
    slow, told = (predicted_work_seconds(shell.core.pending, [view], "p50_tokens") for view in (after, before))
    assert slow == pytest.approx(told * TRUTH.base / PRIOR.base, rel=0.2), "the backlog counts with the fit"


def test_the_first_batch_is_published_at_once_the_others_at_most_every_second():
    shell = Shell()
    for _ in range(40):
        shell.run(after_ms=100)
    moments = [moment for moment, _ in shell.published]
    assert moments[0] == 10_100
    assert len(moments) == 4
    assert all(later - earlier >= PUBLISH_MS for earlier, later in pairwise(moments))
    shell.now_ms += PUBLISH_MS
    shell.tell(on.Tick())
    assert shell.published[-1][1].observations == 40, "what is left is published without another batch"
    assert shell.published[-1][1].update_time.ToMilliseconds() == shell.now_ms
    shell.now_ms += PUBLISH_MS
    shell.tell(on.Tick())
    assert len(shell.published) == 5, "nothing new"


def test_an_owner_that_stops_publishes_what_it_has():
    shell = Shell()
    shell.run(after_ms=10)
    batch = shell.begin()
    shell.now_ms += 10
    shell.tell(on.HandOver())
    shell.end(batch, random_batch(shell.choice, rows=1))
    assert [state.observations for _, state in shell.published] == [1, 2]


def test_the_next_owner_goes_on():
    shell = Shell()
    for _ in range(5):
        shell.run(after_ms=PUBLISH_MS)
    state = shell.published[-1][1]
    successor = Shell(epoch=2)
    successor.tell(on.CostModelsFound((state,)))
    assert successor.version == "fit/5"
    assert successor.core.flight.views()[0].cost == shell.core.flight.views()[0].cost
    successor.run(after_ms=PUBLISH_MS)
    assert successor.published[-1][1].observations == 6
    late = Shell(epoch=3, records=(record(name="deployments/b"),))
    late.tell(on.CostModelsFound((state,)))
    late.tell(on.DeploymentsChanged((record(),)))
    assert late.version == "fit/5", "a deployment may be known later than its cost"


def test_another_plan_begins_with_its_prior():
    shell = Shell()
    shell.run()
    running = shell.begin()
    shell.tell(on.DeploymentsChanged((record("plan-2"),)))
    assert shell.version == "prior/roofline"
    shell.end(running, random_batch(shell.choice, rows=1))
    assert shell.version == "prior/roofline", "a batch of the old plan says nothing of the new one"
    shell.run(after_ms=PUBLISH_MS)
    assert [(state.plan_hash, state.observations) for _, state in shell.published] == [("plan-1", 1), ("plan-2", 1)]
    successor = Shell(epoch=2, records=(record("plan-2"),))
    successor.tell(on.CostModelsFound((shell.published[0][1],)))
    assert successor.version == "prior/roofline"


def test_a_deployment_that_comes_back_is_remembered():
    shell = Shell()
    shell.run()
    shell.tell(on.DeploymentsChanged(()))
    shell.tell(on.DeploymentsChanged((record(),)))
    assert shell.version == "fit/1"


def test_each_deployment_has_its_own_model():
    shell = Shell(records=(record(), record(name="deployments/b")))
    shell.run()
    versions = {view.deployment: view.cost.version for view in shell.core.flight.views()}
    assert versions == {"deployments/a": "fit/1", "deployments/b": "prior/roofline"}


def test_a_batch_s_cost_is_on_one_observation():
    shell = Shell()
    shell.begin()  # a batch of one, so that the next is of two
    first = shell.batch
    both = [submission(f"r{number}") for number in range(2)]
    shell.tell(on.QueriesTaken(tuple(on.TakenQuery(one.name, f"{n}-0", one.entry) for n, one in enumerate(both))))
    shell.end(first, None)
    made = random_batch(shell.choice, rows=2)
    shell.end(shell.batch, made)
    costs = [observation.step_aggregates for observation in shell.observations if observation is not None]
    assert len(costs) == 3
    assert [cost == made for cost in costs] == [False, True, False]
    assert shell.version == "fit/1"


def test_a_batch_without_costs_teaches_nothing():
    shell = Shell()
    shell.end(shell.begin(), None)
    shell.end(shell.begin(), StepAggregates(total_seconds=1.0))
    assert shell.version == "prior/roofline"
    assert not shell.published


@pytest.fixture
def metrics():
    before = set(REGISTRY._collector_to_names)
    yield Metrics()
    for collector in set(REGISTRY._collector_to_names) - before:
        REGISTRY.unregister(collector)


def test_what_is_published_is_shown(metrics):
    shell = Shell()
    for _ in range(10):
        shell.run(after_ms=PUBLISH_MS)
    state = shell.published[-1][1]
    metrics.count(MODEL, do.PublishCostModels((state,)))
    labels = {"model": MODEL, "deployment": "deployments/a"}

    def shown(name: str, **more: str) -> float | None:
        return REGISTRY.get_sample_value(f"uellm_cost_model_{name}", {**labels, **more})

    [view] = shell.core.flight.views()
    assert shown("observations") == 10
    assert shown("coefficient_seconds", coefficient="base") == pytest.approx(view.step_time.base)
    assert shown("deviation_seconds", coefficient="startup") == pytest.approx(view.cost.standard_deviation[4])
    assert shown("relative_error") == pytest.approx(view.cost.relative_error)
    assert shown("interval_coverage") == pytest.approx(view.cost.coverage)
    assert shown("interval_ratio") == pytest.approx(state.interval_ratio)
    assert shown("condition_number") == pytest.approx(view.cost.condition_number)
