"""The comparison of simulator and live stack: what the simulator itself made, taken for a live run, is played again."""

from __future__ import annotations

import json
import random

import pytest
from uellm_scheduler.app.core import SchedulerCore
from uellm_scheduler.policies import POLICIES
from uellm_simulator.scenario import CONTINUOUS, STATIC, Engine
from uellm_simulator.workload import MEASURED, Arrival, Rules, requests_of
from uellm_simulator.world import World

from benchmarks.validation.live import LiveRun, Served, Wanted
from benchmarks.validation.played import Machine, compared, fitted, machine, play
from benchmarks.validation.section import COMMITTED, committed, markdown
from uellm.v1.stream_pb2 import StepAggregates

UNIX = 1.7e9


class Watched(World):
    """Keeps what each batch reported."""

    def _tell(self, event):
        if getattr(event, "aggregates", None) is not None:
            self.__dict__.setdefault("batches", {})[event.batch_id] = event.aggregates
        super()._tell(event)


def live(engine: Engine, policy: str) -> LiveRun:
    """A simulated run in the form of a live one."""
    draw = random.Random(3)
    lines = [Arrival(number / 4, draw.randint(10, 300), draw.randint(5, 120)) for number in range(60)]
    requests = requests_of(lines, Rules(predictions=MEASURED), engine.step, 1_000, "simulated", 1)
    world = Watched(
        SchedulerCore("simulated", 1, POLICIES[policy]),
        [(engine.record("deployments/0", 1.0), engine.step)],
        requests,
        dispatch_seconds=0.01,
    )
    served = [
        Served(
            Wanted(0.0, one.request.name, 999, one.request.slo_class, one.request.completion_seconds),
            UNIX + one.request.arrival.seconds - 0.05,
            one.request.predicted,
            one.request.arrival.prompt_tokens,
            refused=one.refused,
            accepted=0.0 if one.refused else UNIX + one.request.arrival.seconds,
            dispatched=UNIX + one.dispatch_seconds,
            first_token=UNIX + one.first_token_seconds,
            finished=UNIX + one.finish_seconds,
            output_tokens=one.output_tokens,
            batch_id=one.batch_id,
        )
        for one in world.run()
    ]
    return LiveRun(policy, None, served, world.__dict__["batches"])


@pytest.mark.parametrize("engine", [STATIC, CONTINUOUS], ids=["static", "continuous"])
@pytest.mark.parametrize("policy", ["fifo", "uellm"])
def test_what_was_simulated_is_played_as_it_was(engine: Engine, policy: str):
    run = live(engine, policy)
    record = engine.record("deployments/0", 1.0)
    lengths = {one.wanted.prompt: one.output_tokens or 50 for one in run.served}
    found = compared(run, play(record, run, lengths, Machine(engine.step, 0.0, 0.01)))
    assert found["completed_by_both"] >= 40
    assert found["completion"]["median_abs_error"] < 0.02
    assert abs(found["makespan_s"]["error"]) < 0.02
    assert found["same_fate"] > 0.9


@pytest.mark.parametrize("engine", [STATIC, CONTINUOUS], ids=["static", "continuous"])
def test_step_times_are_found_again(engine: Engine):
    run = live(engine, "fifo")
    found = fitted(list(run.batches.values()), padded=not engine.continuous)
    assert found.base == pytest.approx(engine.step.base, rel=0.01)
    assert found.per_row == pytest.approx(engine.step.per_row, rel=0.01)
    assert found.prefill_per_token == pytest.approx(engine.step.prefill_per_token, rel=0.01)
    assert found.startup == pytest.approx(engine.step.startup, abs=1e-4)


def test_time_that_no_pass_reports_is_put_between_them():
    """Two queries that overlap, of 10 steps of 0.1 s in all, kept the engine for 1.5 s, of which 0.1 s is dispatch."""
    cost = StepAggregates(total_seconds=1.0)
    cost.decode.add(rows=1, first_context=10, steps=10, context_tokens=145, seconds=0.9)
    cost.prefill.add(rows=1, tokens=10, padded_tokens=10, seconds=0.1)
    told = MEASURED.of(10, 100, random.Random(0))
    alone = Served(
        Wanted(0, "a", 9), 0, told, 10, refused=False, accepted=1.0, dispatched=1.0, finished=2.1, batch_id="a"
    )
    idle = LiveRun("fifo", None, [alone], {"a": cost})
    both = [
        Served(Wanted(0, name, 9), 0, told, 10, refused=False, dispatched=begin, finished=end, batch_id="a")
        for name, begin, end in (("a", 1.0, 2.0), ("b", 1.5, 2.5))
    ]
    found = machine(STATIC.record("deployments/0", 1.0), [LiveRun("fifo", None, both, {"a": cost})], idle)
    assert found.dispatch_seconds == pytest.approx(0.1)
    assert found.between_seconds == pytest.approx((1.5 - 0.1 - 1.0) / 10)


def test_the_committed_figures_become_a_section():
    report = json.loads(COMMITTED.read_text("utf-8"))
    found = committed()
    assert len(found["rows"]) == 2 * sum(len(one["runs"]) for one in report["engines"].values()) > 0
    assert all(len(row) == len(found["header"]) for row in found["rows"])
    assert ("disturbed" in " ".join(found["notes"])) == report["disturbed"]
    assert markdown(found).count("\n| ") == len(found["rows"]) + 2
