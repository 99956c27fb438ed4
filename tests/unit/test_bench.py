"""`uellm bench` without a stack: workloads, records, runs, Morphling's choice, figures."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uellm_simulator.arrivals import Gamma, Generated, LogNormal
from uellm_simulator.metrics import Window
from uellm_simulator.runs import Source
from uellm_simulator.workload import Arrival

from uellm.bench.driving import check_servers
from uellm.bench.errors import BenchError
from uellm.bench.experiment import Plan, Results, measure, measure_capacity
from uellm.bench.figures import by_load, class_attainment, finite, means, paired, summary, warnings
from uellm.bench.morphling import best_predicted, sampled, space_of, tune
from uellm.bench.processes import Processes
from uellm.bench.records import Record
from uellm.bench.runs import Ask, Clock, Run, busy_share, serve
from uellm.bench.tables import tables
from uellm.bench.triton import Batching
from uellm.bench.workload import Planned, ServiceClass, Workload
from uellm.cost.lengths import LengthDistribution, log_normal_cdf
from uellm.v1.query_pb2 import QUERY_STATE_COMPLETED, QUERY_STATE_REJECTED

FAST = ServiceClass("fast", 0.5, 2.0)
CALM = ServiceClass("calm", 0.5)
LENGTHS = LogNormal(10.0, 0.5)
DRAWN = Source(generated=Generated(Gamma(), LENGTHS, LENGTHS, tenants=3))
PLAN = Plan(("a", "b", "c"), (0.5, 1.0), 0.0, rounds=3, queries=4, warm_up=1, seed=0)


def workload_of(source: Source = DRAWN) -> Workload:
    return Workload(source, ("one", "two", "three"), (FAST, CALM), 20)


async def answer(record: Record, clock: Clock) -> None:
    record.dispatched, record.first_token, record.finished = clock(), clock(), clock()
    record.output_tokens, record.state = 10, QUERY_STATE_COMPLETED


async def fail(record: Record, clock: Clock) -> None:
    record.failed("broken")


class Quiet:
    """Watches nothing; `on_run` is called with every complete run."""

    def __init__(self, on_run: Callable[[Run], None] = lambda _: None) -> None:
        self.run = on_run

    def step(self, text: str, queries: int) -> None: ...

    def ended(self) -> None: ...


class Fixed:
    """Asks every server in one way."""

    def __init__(self, ask: Callable[[Record, Clock], Awaitable[None]]) -> None:
        self.asked: list[str] = []
        self._ask = ask

    async def ask(self, name: str) -> Ask:
        self.asked.append(name)
        return self._ask


def record_of(planned: float, service: ServiceClass = FAST, finished: float | None = None, tokens: int = 8) -> Record:
    record = Record(Planned(planned, service, "p", 20, "t"), sent=planned)
    if finished is not None:
        record.state, record.finished, record.output_tokens = QUERY_STATE_COMPLETED, finished, tokens
        record.dispatched = record.first_token = planned
    return record


def run_of(records: list[Record], server: str = "a", at: int = 0, **processor: float) -> Run:
    return Run(server, 1.0, at, 1.0, 10.0, records, Window(), processor)


@given(rate=st.floats(0.01, 100), seed=st.integers(0, 1000), count=st.integers(2, 40))
def test_another_rate_moves_arrivals_and_nothing_else(rate: float, seed: int, count: int) -> None:
    workload = workload_of()
    slow, quick = workload.take(count, 1.0, seed), workload.take(count, rate, seed)
    assert [replace(one, seconds=0.0) for one in slow] == [replace(one, seconds=0.0) for one in quick]
    span = quick[-1].seconds
    assert quick[0].seconds == 0.0
    assert (count - 1) / span == pytest.approx(rate)


def test_a_trace_gives_times_and_tenants() -> None:
    source = Source(trace=(Arrival(0.0, 5, 5, "x"), Arrival(1.0, 5, 5, "y"), Arrival(4.0, 5, 5, "x")))
    taken = workload_of(source).take(3, 4.0, 0)
    assert [one.seconds for one in taken] == pytest.approx([0.0, 0.125, 0.5])
    assert [one.tenant for one in taken] == ["x", "y", "x"]


def test_requests_that_come_all_at_once_have_no_rate() -> None:
    with pytest.raises(BenchError, match="2 requests of the trace come all at once"):
        workload_of(Source(trace=(Arrival(0.0, 5, 5), Arrival(0.0, 5, 5)))).take(2, 1.0, 0)


def test_records_survive_their_file() -> None:
    record = record_of(3.0, finished=4.5)
    record.name, record.prompt_tokens = "tenants/t/models/m/queries/1", 7
    record.predicted = LengthDistribution.from_cdf(log_normal_cdf(2.0, 0.5), 20)
    plain = json.loads(json.dumps(record.to_json()))
    assert plain["deadline"] == 5.0
    again = Record.from_json(plain)
    assert again.fate() == record.fate()
    assert again.to_json() == record.to_json()


def test_latency_counts_from_the_planned_send() -> None:
    record = record_of(1.0, finished=3.5)
    record.sent = 2.0  # the client was late, and that is no excuse
    fate = record.fate()
    assert fate.latency == 2.5
    assert fate.late
    assert record.lag == 1.0


async def test_queries_are_sent_whatever_became_of_the_others() -> None:
    last = asyncio.Event()

    async def ask(record: Record, clock: Clock) -> None:
        if record.planned.seconds == 0.2:
            last.set()
        await asyncio.wait_for(last.wait(), 30)  # the first ends only after the last was sent
        await answer(record, clock)

    planned = [Planned(at, FAST, "p", 20) for at in (0.0, 0.1, 0.2)]
    records, _ = await serve(planned, ask)
    assert all(record.sent is not None and record.sent >= record.planned.seconds for record in records)
    assert all(record.state == QUERY_STATE_COMPLETED for record in records)


async def test_a_server_that_serves_nothing_ends_the_measurement() -> None:
    with pytest.raises(BenchError, match="none of 2 queries was served; the first: broken"):
        await serve([Planned(0.0, FAST, "p", 20)] * 2, fail)


def test_share_of_the_time_with_something_on_the_engine() -> None:
    records = [record_of(0.0, finished=2.0), record_of(1.0, finished=3.0), record_of(6.0, finished=7.0)]
    assert busy_share(records, 10.0) == pytest.approx(0.4)
    assert math.isnan(busy_share([record_of(0.0)], 10.0))


def test_every_server_has_its_turn_and_begins_rounds() -> None:
    turns = list(PLAN.turns())
    assert len(turns) == len(set(turns)) == 3 * 2 * 3
    firsts = [next(server for at, load, server in turns if (at, load) == (number, 0.5)) for number in range(3)]
    assert firsts == ["a", "b", "c"]


async def test_interrupted_runs_are_not_kept() -> None:
    results = Results(replace(PLAN, loads=(), rate=200.0))
    stalled = asyncio.Event()

    async def ask(record: Record, clock: Clock) -> None:
        if len(results.runs) == 2:
            stalled.set()
            await asyncio.Event().wait()
        await answer(record, clock)

    task = asyncio.create_task(measure(results, Fixed(ask), workload_of(), Processes(), 1, Quiet()))
    await asyncio.wait_for(stalled.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [run.server for run in results.runs] == ["a", "b"]
    assert summary(results)["loads"][0]["servers"].keys() == {"a", "b"}
    assert tables(results)


async def test_all_servers_get_the_same_arrivals_and_the_warm_up_does_not_count() -> None:
    results = Results(replace(PLAN, loads=(), rate=500.0))
    servers = Fixed(answer)
    await measure(results, servers, workload_of(), Processes(), 1, Quiet())
    assert servers.asked == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    for at in range(PLAN.rounds):
        one, *others = ([record.planned for record in run.records] for run in results.runs if run.round == at)
        assert all(other == one for other in others)
    assert [run.metrics.requests for run in results.runs] == [4] * 9
    counted = [query["counted"] for query in results.to_json()["runs"][0]["queries"]]
    assert counted == [False, True, True, True, True]


async def test_a_capacity_that_was_partly_refused_is_none() -> None:
    async def ask(record: Record, clock: Clock) -> None:
        if record.planned.prompt == "two":
            record.state, record.reason = QUERY_STATE_REJECTED, "PROMPT_TOO_LONG"
        else:
            await answer(record, clock)

    with pytest.raises(BenchError, match=r"of 30 queries were not served \(PROMPT_TOO_LONG\); say --rate"):
        await measure_capacity(Fixed(ask), workload_of().burst(30, 0), Quiet())


def test_regression_finds_the_best_configuration() -> None:
    space = space_of(32, (0.01, 0.1))

    def speed(one: Batching) -> float:
        return math.exp(-((math.log2(one.rows) - 3) ** 2) - one.queue_delay_seconds)

    measured = {one: speed(one) for one in sampled(space, 1)}
    assert len(measured) == 5
    assert best_predicted(space, measured) == Batching(8, 0.01)


async def test_the_best_that_was_measured_is_chosen_and_its_cost_told() -> None:
    configured: list[Batching] = []

    async def configure(one: Batching) -> Ask:
        async def ask(record: Record, clock: Clock) -> None:
            await answer(record, clock)
            record.output_tokens = 10**one.rows

        configured.append(one)
        return ask

    tuning = await tune(space_of(8, (0.01,)), configure, workload_of(), 0)
    assert tuning.chosen.rows == 8
    assert tuning.queries == sum(2 * one.rows for one in configured)
    assert [one for one, _ in tuning.tokens_per_second] == configured


def test_figures_by_hand() -> None:
    refused = record_of(4.0)
    refused.state, refused.finished = QUERY_STATE_REJECTED, 5.0
    run = run_of([record_of(0.0, finished=1.0), record_of(2.0, finished=5.0), refused, record_of(5.0, CALM, 9.0)])
    found = means([run])
    assert found["goodput_per_second"] == pytest.approx(1 / 5)
    assert (found["in_time"], found["late"], found["refused"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found["refused_after"] == pytest.approx(0.5)
    assert found["useful_tokens_per_second"] == pytest.approx(16 / 5)
    assert found["latency_p50_seconds"] == pytest.approx(3.0)
    assert class_attainment([run]) == {"fast": pytest.approx(1 / 3)}


def test_only_rounds_that_both_have_are_paired() -> None:
    good, bad = [record_of(0.0, finished=1.0), record_of(1.0, finished=2.0)], [record_of(0.0), record_of(1.0)]
    ours = [run_of(good, at=0), run_of(bad, at=1), run_of(bad, at=2)]
    theirs = [run_of(bad, "b", at=0), run_of(bad, "b", at=1)]
    assert paired(ours, theirs)["in_time"].mean == pytest.approx(0.5)


def test_a_client_that_bounds_the_measurement_is_told_of() -> None:
    late = record_of(0.0, finished=1.0)
    late.sent = 0.5
    results = Results(PLAN, runs=[run_of([record_of(0.0, finished=1.0)]), run_of([late], at=1, client=0.95)])
    cores, lag = warnings(results)
    assert "round 2, a: the client used 0.95 cores" in cores
    assert "sent 0.50 s late" in lag
    assert by_load(results) == {1.0: {"a": results.runs}}


def test_json_has_no_infinities() -> None:
    assert finite({"a": (math.inf, 1.0), "b": [math.nan]}) == {"a": [None, 1.0], "b": [None]}


@pytest.mark.parametrize(
    ("names", "embedded", "continuous", "said"),
    [
        (["fifo", "nope"], True, False, "'nope' is neither a policy"),
        (["dynamic-batcher"], True, True, "take engine-directly"),
        (["dynamic-batcher", "morphling"], False, False, "dynamic-batcher and morphling: only an embedded stack"),
    ],
)
def test_servers_that_cannot_be_driven(names: list[str], embedded: bool, continuous: bool, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        check_servers(names, ["fifo"], embedded=embedded, continuous=continuous)
    check_servers(["fifo", "engine-directly"], ["fifo"], embedded=embedded, continuous=continuous)
