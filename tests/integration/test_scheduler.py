"""The scheduler as a process, on real Redis and real Triton, through its gRPC interface and through faults."""

from __future__ import annotations

import grpc
import pytest
from uellm_scheduler.app.replay import replay
from uellm_scheduler.policies import POLICIES

from tests.support.stack import MODEL, Bench, make_submission, until
from uellm.rpc.errors import InvalidArgumentError, NotFoundError
from uellm.rpc.status import from_rpc_error
from uellm.v1 import scheduler_pb2 as pb
from uellm.v1.query_pb2 import (
    FINISH_REASON_LENGTH,
    QUERY_STATE_CANCELLED,
    QUERY_STATE_COMPLETED,
    QUERY_STATE_FAILED,
    QUERY_STATE_REJECTED,
    QUERY_STATE_RUNNING,
)
from uellm.v1.stream_pb2 import DEPLOYMENT_STATE_DRAINING, Backlog


@pytest.fixture
async def eight_rows(bench: Bench) -> None:
    """Batches of eight, from the start of the scheduler on: name it before `scheduler`."""
    bench.record.limits.max_batch_rows = 8
    await bench.publish()


async def watch(stub, name: str, cursor: str = "") -> list[pb.WatchResponse]:
    call = stub.Watch(pb.WatchRequest(targets=[pb.WatchTarget(name=name, cursor=cursor)]), timeout=60)
    return [response async for response in call]


async def test_a_query_goes_all_the_way(scheduler, bench: Bench):
    made = make_submission("hello", tokens=12)
    await bench.submit(made)
    responses = await watch(scheduler, made.name)
    kinds = [response.event.WhichOneof("event") for response in responses]
    assert kinds[:2] == ["admitted", "batched"]
    assert set(kinds[2:-1]) == {"token_delta"}
    outcome = responses[-1].event.outcome
    assert outcome.state == QUERY_STATE_COMPLETED
    assert outcome.finish_reason == FINISH_REASON_LENGTH
    assert outcome.output_tokens == 12
    [stored] = await bench.check([made.name])
    assert stored == outcome
    middle = len(responses) // 2
    assert await watch(scheduler, made.name, responses[middle].cursor) == responses[middle + 1 :]
    status = (await scheduler.GetQuery(pb.GetQueryRequest(name=made.name))).status
    assert (status.state, status.dispatch_count) == (QUERY_STATE_COMPLETED, 1)
    [observation] = await bench.redis.xrange(f"uellm:{{{MODEL}}}:observations")
    assert observation is not None


async def test_batches_form_while_earlier_ones_run(scheduler, bench: Bench):
    first = make_submission("first", tokens=380)
    others = [make_submission(f"other-{number}", tokens=20) for number in range(8)]
    await bench.submit(first)
    await until(lambda: _running(scheduler, first.name))
    await bench.submit(*others)
    names = [made.name for made in (first, *others)]
    await until(lambda: bench.all_finished(names))
    outcomes = await bench.check(names)
    assert outcomes[0].batch_rows == 1
    assert [outcome.batch_rows for outcome in outcomes[1:]] == [4] * 8
    assert len({outcome.batch_id for outcome in outcomes}) == 3


async def test_watching_several_queries_ends_with_the_last_outcome(scheduler, bench: Bench):
    made = [make_submission(f"q{number}", tokens=5 + 9 * number) for number in range(6)]
    await bench.submit(*made)
    call = scheduler.Watch(pb.WatchRequest(targets=[pb.WatchTarget(name=one.name) for one in made]), timeout=60)
    ended = [response.name async for response in call if response.event.HasField("outcome")]
    assert sorted(ended) == sorted(one.name for one in made)


async def test_cancelling_one_of_eight_leaves_the_other_seven_token_identical(eight_rows, scheduler, bench: Bench):
    async def run(prefix: str, cancel: bool) -> dict[str, str]:
        blocker = make_submission(f"{prefix}-blocker", tokens=300)
        made = [make_submission(f"{prefix}-{n}", tokens=250, prompt=[65 + n, 70, 80]) for n in range(8)]
        await bench.submit(blocker)
        await until(lambda: _running(scheduler, blocker.name))
        await bench.submit(*made)
        names = [one.name for one in made]
        if cancel:
            await until(lambda: _has_delta(bench, names[3]))
            response = await scheduler.CancelQuery(pb.CancelQueryRequest(name=names[3]))
            assert response.state == QUERY_STATE_RUNNING
        await until(lambda: bench.all_finished([*names, blocker.name]))
        outcomes = await bench.check(names)
        assert {outcome.batch_rows for outcome in outcomes} == {8}
        expected = [QUERY_STATE_CANCELLED if cancel and n == 3 else QUERY_STATE_COMPLETED for n in range(8)]
        assert [outcome.state for outcome in outcomes] == expected
        return {name[-1]: outcome.text for name, outcome in zip(names, outcomes, strict=True)}

    undisturbed, disturbed = await run("a", cancel=False), await run("b", cancel=True)
    cut = disturbed.pop("3")
    assert len(cut) < len(undisturbed["3"])
    assert undisturbed.pop("3").startswith(cut)
    assert disturbed == undisturbed


async def test_a_waiting_query_is_cancelled_without_ever_running(scheduler, bench: Bench):
    running, waiting = make_submission("running", tokens=300), make_submission("waiting", tokens=5)
    await bench.submit(running)
    await until(lambda: _running(scheduler, running.name))
    await bench.submit(waiting)
    await scheduler.CancelQuery(pb.CancelQueryRequest(name=waiting.name))
    assert (await watch(scheduler, waiting.name))[-1].event.outcome.state == QUERY_STATE_CANCELLED
    queue = await scheduler.GetQueue(pb.GetQueueRequest(model=MODEL))
    assert [list(batch.names) for batch in queue.batches] == [[running.name]]
    assert (queue.owner, queue.policy) == ("one", "fifo")
    await until(lambda: bench.all_finished([running.name]))
    assert [outcome.dispatch_count for outcome in await bench.check([running.name, waiting.name])] == [1, 0]


async def test_another_policy_decides_while_queries_wait_and_run(scheduler, bench: Bench):
    running = make_submission("running", tokens=300)
    waiting = [make_submission(f"waiting-{number}", tokens=5) for number in range(6)]
    await bench.submit(running)
    await until(lambda: _running(scheduler, running.name))
    await bench.submit(*waiting)
    changed = await scheduler.SetPolicy(pb.SetPolicyRequest(model=MODEL, policy="uellm"))
    assert changed.previous_policy == "fifo"
    assert (await scheduler.GetQueue(pb.GetQueueRequest(model=MODEL))).policy == "uellm"
    # It refuses what is too late, and `Submit` is told when that is.
    backlog = Backlog.FromString(await bench.redis.get(f"uellm:{{{MODEL}}}:backlog"))
    assert [place.deployment for place in backlog.deployments] == [bench.record.name]
    names = [running.name, *(made.name for made in waiting)]
    await until(lambda: bench.all_finished(names))
    assert {outcome.state for outcome in await bench.check(names)} == {QUERY_STATE_COMPLETED}


@pytest.mark.parametrize(
    ("model", "policy", "status"),
    [
        (MODEL, "best", grpc.StatusCode.INVALID_ARGUMENT),
        ("", "fifo", grpc.StatusCode.INVALID_ARGUMENT),
        ("nothing", "fifo", grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_wrong_choice_of_policy_changes_nothing(scheduler, model: str, policy: str, status: grpc.StatusCode):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await scheduler.SetPolicy(pb.SetPolicyRequest(model=model, policy=policy))
    assert caught.value.code() == status
    assert (await scheduler.GetQueue(pb.GetQueueRequest(model=MODEL))).policy == "fifo"


async def test_decisions_are_replayed_bit_for_bit_and_explained(scheduler, bench: Bench):
    async def explain(name: str) -> pb.ExplainQueryResponse:
        return await scheduler.ExplainQuery(pb.ExplainQueryRequest(name=name))

    running = make_submission("running", tokens=300)
    others = [make_submission(f"other-{number}", tokens=5) for number in range(5)]
    waiting, hopeless = make_submission("waiting", tokens=5), make_submission("hopeless", tokens=5)
    hopeless.entry.slo.completion.FromMilliseconds(1)
    waiting.record.query.slo.completion.FromMilliseconds(3_600_000)
    waiting.entry.slo.completion.FromMilliseconds(3_600_000)
    await bench.submit(running)
    await until(lambda: _running(scheduler, running.name))
    await bench.submit(*others, waiting)
    explained = await explain(waiting.name)
    assert not explained.decisions
    assert "It has waited" in explained.explanation
    assert "Its deadline is 3600.0 s after acceptance" in explained.explanation
    assert "has been running for" in (await explain(running.name)).explanation
    await scheduler.SetPolicy(pb.SetPolicyRequest(model=MODEL, policy="uellm"))
    await bench.submit(hopeless)
    names = [made.name for made in (running, *others, waiting, hopeless)]
    await until(lambda: bench.all_finished(names))

    outcomes = dict(zip(names, await bench.check(names), strict=True))
    assert outcomes[hopeless.name].state == QUERY_STATE_REJECTED
    explained = await explain(hopeless.name)
    [decision] = explained.decisions
    assert [plan.name for plan in decision.refusals] == [hopeless.name]
    assert decision.refusals[0].refusal == outcomes[hopeless.name].refusal
    assert (decision.policy, len(decision.columns), len(decision.engines)) == ("uellm", 0, 0)
    assert "The policy uellm refused it after" in explained.explanation
    assert "its deadline was 1 ms" in explained.explanation
    explained = await explain(waiting.name)
    [decision] = explained.decisions
    [batch] = [batch for batch in decision.batches if waiting.name in batch.names]
    assert batch.batch_id == outcomes[waiting.name].batch_id
    assert f"in batch {batch.batch_id} on deployments/tiny" in explained.explanation
    assert "its deadline of 3600.0 s was kept" in explained.explanation

    recorded = [(one.decision_id, one.decision) async for one in scheduler.ReadDecisions(_decisions())]
    replayed = list(replay(recorded, POLICIES))
    assert [one.again for one in replayed] == [one.recorded for one in replayed]
    assert {one.record.policy for one in replayed} == {"fifo", "uellm"}
    assert sum(len(one.recorded.dispatched) for one in replayed) == 7
    after = [one.decision_id async for one in scheduler.ReadDecisions(_decisions(recorded[0][0]))]
    assert after == [decision_id for decision_id, _ in recorded[1:]]

    await bench.redis.delete(f"uellm:{{{MODEL}}}:decisions")
    explained = await explain(waiting.name)
    assert not explained.decisions
    assert "not in the flight recorder any more" in explained.explanation
    assert [one async for one in scheduler.ReadDecisions(_decisions())] == []


def _decisions(after: str = "") -> pb.ReadDecisionsRequest:
    return pb.ReadDecisionsRequest(model=MODEL, after_decision_id=after)


async def test_a_bad_row_fails_alone(scheduler, bench: Bench):
    good = [make_submission(f"good-{number}", tokens=10) for number in range(2)]
    bad = make_submission("bad", tokens=10, prompt=[1, 100_000])
    blocker = make_submission("blocker", tokens=300)
    await bench.submit(blocker)
    await until(lambda: _running(scheduler, blocker.name))
    await bench.submit(good[0], bad, good[1])
    names = [good[0].name, bad.name, good[1].name]
    await until(lambda: bench.all_finished([*names, blocker.name]))
    outcomes = await bench.check(names)
    assert [o.state for o in outcomes] == [QUERY_STATE_COMPLETED, QUERY_STATE_FAILED, QUERY_STATE_COMPLETED]
    assert outcomes[1].failure.reason == "ENGINE_ERROR"
    assert "100000" in outcomes[1].failure.message
    assert {outcome.batch_id for outcome in outcomes} == {outcomes[0].batch_id}


async def test_a_draining_deployment_gets_nothing_new(scheduler, bench: Bench):
    bench.record.state = DEPLOYMENT_STATE_DRAINING
    await bench.publish()
    acknowledged = f"{DEPLOYMENT_STATE_DRAINING}:0".encode()

    async def owner_knows() -> bool:
        return bool(await bench.redis.hget(f"uellm:{{{MODEL}}}:running", bench.record.name) == acknowledged)

    await until(owner_knows)
    made = make_submission("late", tokens=3)
    await bench.submit(made)

    async def is_queued() -> bool:
        return bool((await scheduler.GetQueue(pb.GetQueueRequest(model=MODEL))).queued == 1)

    await until(is_queued)
    await bench.redis.hdel("uellm:deployments", bench.record.name)
    bench.record.name, bench.record.state = "deployments/new", 2
    await bench.publish()
    assert (await watch(scheduler, made.name))[-1].event.outcome.deployment == "deployments/new"


async def test_wrong_requests_are_answered_precisely(scheduler):
    name = f"tenants/t/models/{MODEL}/queries/none"
    cases = [
        (scheduler.GetQuery(pb.GetQueryRequest(name="nonsense")), InvalidArgumentError, "name"),
        (scheduler.CancelQuery(pb.CancelQueryRequest(name="")), InvalidArgumentError, "name"),
        (scheduler.GetQueue(pb.GetQueueRequest(model="../etc")), InvalidArgumentError, "model"),
        (scheduler.GetQuery(pb.GetQueryRequest(name=name)), NotFoundError, ""),
        (scheduler.CancelQuery(pb.CancelQueryRequest(name=name)), NotFoundError, ""),
        (scheduler.GetQueue(pb.GetQueueRequest(model="never")), NotFoundError, ""),
        (scheduler.ExplainQuery(pb.ExplainQueryRequest(name="nonsense")), InvalidArgumentError, "name"),
        (scheduler.ExplainQuery(pb.ExplainQueryRequest(name=name)), NotFoundError, ""),
    ]
    for call, kind, field in cases:
        with pytest.raises(grpc.RpcError) as raised:
            await call
        error = from_rpc_error(raised.value)
        assert isinstance(error, kind)
        if isinstance(error, InvalidArgumentError):
            assert [violation.field for violation in error.violations] == [field] * len(error.violations)
    watches = [
        (pb.WatchRequest(), "targets"),
        (pb.WatchRequest(targets=[pb.WatchTarget(name="x")]), "targets[0].name"),
        (pb.WatchRequest(targets=[pb.WatchTarget(name=name, cursor="x")]), "targets[0].cursor"),
    ]
    for request, field in watches:
        with pytest.raises(grpc.RpcError) as raised:
            await anext(aiter(scheduler.Watch(request)))
        error = from_rpc_error(raised.value)
        assert isinstance(error, InvalidArgumentError)
        assert error.violations[0].field == field
    reads = [
        (pb.ReadDecisionsRequest(model="../etc"), InvalidArgumentError),
        (pb.ReadDecisionsRequest(model=MODEL, after_decision_id="x"), InvalidArgumentError),
        (pb.ReadDecisionsRequest(model="never"), NotFoundError),
    ]
    for request, kind in reads:
        with pytest.raises(grpc.RpcError) as raised:
            await anext(aiter(scheduler.ReadDecisions(request)))
        assert isinstance(from_rpc_error(raised.value), kind)
    with pytest.raises(grpc.RpcError) as raised:
        await anext(aiter(scheduler.Watch(pb.WatchRequest(targets=[pb.WatchTarget(name=name)]))))
    assert isinstance(from_rpc_error(raised.value), NotFoundError)


async def _running(stub, name: str) -> bool:
    return (await stub.GetQuery(pb.GetQueryRequest(name=name))).status.state == QUERY_STATE_RUNNING


async def _has_delta(bench: Bench, name: str) -> bool:
    return any(event.HasField("token_delta") for event in await bench.events(name))
